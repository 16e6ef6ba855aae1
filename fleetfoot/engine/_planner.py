"""Which steps a registration needs.

One registration is planned at a time, so each decision sees all that were made before it; the
steps themselves run side by side.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from fleetfoot.engine import _paths, _urn
from fleetfoot.engine._errors import EngineError, ProviderError
from fleetfoot.engine._graph import dependents
from fleetfoot.engine._provider import Call, Diff, Provider
from fleetfoot.engine._state import ResourceState
from fleetfoot.engine._values import UNKNOWN_VALUE, Properties, equal, reveal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from fleetfoot.engine._goal import Alias, Goal
    from fleetfoot.engine._registry import Registry


# What a resource takes over from its registration unchanged.
_AS_ASKED: Final = (
    *("type", "custom", "parent", "inputs", "dependencies", "property_dependencies"),
    *("additional_secret_outputs", "custom_timeouts", "deleted_with", "ignore_changes"),
    *("replace_on_changes", "source_position", "stack_trace"),
)


class Op(StrEnum):
    """The kinds of steps, by the CLI's names where it has one."""

    SAME = "same"
    CREATE = "create"
    UPDATE = "update"
    CREATE_REPLACEMENT = "create-replacement"
    DELETE_REPLACED = "delete-replaced"
    DELETE = "delete"
    REFRESH = "refresh"
    SKIP = "skip"


@dataclass
class Action:
    """One step as planned."""

    op: Op
    old: ResourceState | None
    new: ResourceState | None
    diffs: list[str] = field(default_factory=list)
    # The old resource of a create-before-delete replacement, deleted at the end.
    condemns: bool = False

    @property
    def state(self) -> ResourceState:
        """The resource that the step is about."""
        found = self.new or self.old
        if found is None:
            raise AssertionError("a step is about a resource")
        return found


class Planner:
    """Turns goals into actions.

    Args:
        stack: The stack's name.
        project: The project's name.
        base: The resources in state, in state order.
        registry: Where providers come from.
        preview: Whether inputs may be unknown.
        targets: The only URNs that may change; none means all.
        interrupted: What an earlier run was killed while creating.
    """

    def __init__(
        self,
        stack: str,
        project: str,
        base: list[ResourceState],
        registry: Registry,
        *,
        preview: bool,
        targets: Collection[str] = (),
        interrupted: Iterable[ResourceState] = (),
    ) -> None:
        self._stack, self._project = stack, project
        self._base, self._registry = base, registry
        self._preview, self._targets = preview, frozenset(targets)
        # What such a creation was given by chance (a random name) must be given again.
        self._begun = {item.urn: item.inputs for item in interrupted}
        self._olds = {item.urn: item for item in base if not item.delete}
        self.urns: set[str] = set()
        # Old URNs whose resources the program still declares, under the same name or by alias.
        self.kept: set[str] = set()
        self.aliased: dict[str, str] = {}
        self._alias_of: dict[str, str] = {}
        self._deleted: set[str] = set()
        self._skipped: set[str] = set()
        self._replaced: set[str] = set()
        self._providers: dict[str, ResourceState] = {}
        self.lock = threading.Lock()

    def plan(self, goal: Goal) -> list[Action]:
        """The steps of one registration, in order. Hold `lock`."""
        urn = _urn.make(self._stack, self._project, goal.parent, goal.type, goal.name)
        if urn in self.urns:
            raise EngineError(
                f"Duplicate resource URN '{urn}'",
                "The second resource of this type and name was not registered",
                "Give it a unique name",
            )
        self.urns.add(urn)
        old = self._find_old(urn, goal)
        new = self._new(urn, goal, old)
        if _urn.is_provider(goal.type):
            self._providers[urn] = new
        if self._targets and not self._targeted(urn):
            return [self._untargeted(new, old)]
        if skipped := new.references() & self._skipped:
            raise EngineError(
                f"{urn} depends on {', '.join(sorted(skipped))}, which is not in the targets",
                "It cannot be made without it",
                "Add it to the targets",
            )
        return self._decide(goal, new, old)

    def _decide(self, goal: Goal, new: ResourceState, old: ResourceState | None) -> list[Action]:
        provider = self._provider(new)
        recreating = new.urn in self._deleted
        olds = self._begun.get(new.urn, {})
        if old is not None and not recreating and not old.taint:
            olds = old.inputs
            new.inputs = _paths.keep(goal.inputs, old.inputs, goal.ignore_changes)
        self._check(provider, new, olds)
        if old is None:
            return [Action(Op.CREATE, None, new)]
        if recreating:
            self._replaced.add(new.urn)
            return [Action(Op.CREATE_REPLACEMENT, old, new)]
        diff = self._diff(provider, goal, new, old)
        replace = bool(diff.replaces) or old.pending_replacement
        if (diff.changes and replace) or old.pending_replacement:
            return self._replace(provider, goal, new, old, diff)
        if diff.changes or old.init_errors:
            return [Action(Op.UPDATE, old, new, diffs=_changed(diff, old, new))]
        return [Action(Op.SAME, old, new)]

    def _check(self, provider: Provider | None, new: ResourceState, olds: Properties) -> None:
        if provider is None:
            return
        checked = provider.check(
            Call(new.urn, inputs=new.inputs, old_inputs=olds, preview=self._preview)
        )
        if checked.failures:
            raise ProviderError(
                f"{new.type} resource '{new.name}' has a problem: "
                + "; ".join(f"{name}: {why}" if name else why for name, why in checked.failures)
            )
        new.inputs = checked.inputs

    def _replace(
        self,
        provider: Provider | None,
        goal: Goal,
        new: ResourceState,
        old: ResourceState,
        diff: Diff,
    ) -> list[Action]:
        if new.protect and old.protect:
            raise _protected(new.urn, "replaced")
        self._replaced.add(new.urn)
        # A replacement is a new object: its defaults (its name, say) are not the old one's.
        new.inputs = goal.inputs
        self._check(provider, new, self._begun.get(new.urn, {}))
        diffs = diff.replaces or _changed(diff, old, new)
        first = diff.delete_before_replace
        if goal.delete_before_replace is not None:
            first = goal.delete_before_replace
        if not first and not old.pending_replacement:
            return [Action(Op.CREATE_REPLACEMENT, old, new, diffs, condemns=True)]
        actions = [
            Action(Op.DELETE_REPLACED, dependent, None)
            for dependent in reversed(self._cascade(old))
        ]
        for action in actions:
            if action.state.protect:
                raise _protected(action.state.urn, f"deleted for {new.urn} to be replaced")
            self._deleted.add(action.state.urn)
        if not old.pending_replacement:
            actions.append(Action(Op.DELETE_REPLACED, old, None, diffs))
        return [*actions, Action(Op.CREATE_REPLACEMENT, old, new, diffs)]

    def _cascade(self, root: ResourceState) -> list[ResourceState]:
        """The dependents that cannot live on while root is gone, in state order."""
        gone = {root.urn}
        found = []
        for candidate in dependents(root, self._base, self.urns | self._deleted):
            if candidate.custom and not candidate.delete and self._falls(candidate, gone):
                gone.add(candidate.urn)
                if not candidate.pending_replacement:
                    found.append(candidate)
        return found

    def _falls(self, candidate: ResourceState, gone: set[str]) -> bool:
        if candidate.provider and _urn.provider_urn(candidate.provider) in gone:
            return True
        if candidate.deleted_with in gone:
            return True
        unknown = {
            key
            for key, urns in candidate.property_dependencies.items()
            if key in candidate.inputs and gone.intersection(urns)
        }
        if not unknown:
            return False
        provider = self._provider(candidate)
        if provider is None:
            return False
        inputs = {
            key: UNKNOWN_VALUE if key in unknown else value
            for key, value in candidate.inputs.items()
        }
        diff = provider.diff(
            Call(
                candidate.urn,
                candidate.id,
                inputs=inputs,
                old_inputs=candidate.inputs,
                old_outputs=candidate.outputs,
                ignore=tuple(candidate.ignore_changes),
                preview=True,
            )
        )
        return bool(diff.replaces or _paths.touch(candidate.replace_on_changes, diff.changed))

    def _diff(
        self, provider: Provider | None, goal: Goal, new: ResourceState, old: ResourceState
    ) -> Diff:
        if old.taint:
            return Diff(True, ["id"])
        if new.deleted_with in self._replaced:
            return Diff(True, ["deletedWith"])
        if self._moved(new, old):
            return Diff(True, ["provider"])
        if provider is None:
            return Diff(not equal(old.inputs, new.inputs))
        diff = provider.diff(
            Call(
                new.urn,
                old.id,
                inputs=new.inputs,
                old_inputs=old.inputs,
                old_outputs=old.outputs,
                ignore=tuple(goal.ignore_changes),
                preview=self._preview,
            )
        )
        if diff.changes is None:
            diff.changed = _changed(diff, old, new)
            diff.changes = bool(diff.changed)
        if diff.changes:
            # As under the CLI, a provider that does not name what changed is not second-guessed.
            diff.replaces += _paths.touch(goal.replace_on_changes, diff.changed)
        return diff

    def _moved(self, new: ResourceState, old: ResourceState) -> bool:
        """Whether the resource is now another provider's, and that one works elsewhere."""
        if new.provider == old.provider:
            return False
        if not new.provider or not old.provider:
            return True
        old_urn, new_urn = _urn.provider_urn(old.provider), _urn.provider_urn(new.provider)
        if self.aliased.get(old_urn) == new_urn:
            return False
        before, after = self._olds.get(old_urn), self._providers.get(new_urn)
        if before is None or after is None:
            return True
        if before.type != after.type:
            return True
        return self._registry.changed(before, after)

    def _provider(self, resource: ResourceState) -> Provider | None:
        if not resource.custom:
            return None
        if _urn.is_provider(resource.type):
            return self._registry
        return self._registry.get(resource.provider)

    def _targeted(self, urn: str) -> bool:
        kind = _urn.kind(urn)
        return urn in self._targets or _urn.is_provider(kind) or kind == _urn.ROOT_TYPE

    def _untargeted(self, new: ResourceState, old: ResourceState | None) -> Action:
        if old is None:
            self._skipped.add(new.urn)
            return Action(Op.SKIP, None, new)
        return Action(Op.SAME, old, old.clone())

    def _new(self, urn: str, goal: Goal, old: ResourceState | None) -> ResourceState:
        provided = goal.custom and not _urn.is_provider(goal.type)
        return ResourceState(
            urn=urn,
            **{name: getattr(goal, name) for name in _AS_ASKED},
            provider=goal.provider if provided else "",
            protect=bool(goal.protect),
            retain_on_delete=bool(goal.retain_on_delete),
            aliases=[old.urn] if old is not None and old.urn != urn else [],
            created=old.created if old is not None else "",
            modified=old.modified if old is not None else "",
            extra=dict(old.extra) if old is not None else {},
        )

    def _find_old(self, urn: str, goal: Goal) -> ResourceState | None:
        for candidate in (urn, *self._aliases(goal)):
            old = self._olds.get(candidate)
            if old is None:
                continue
            if candidate != urn:
                other = self.aliased.get(candidate) or (candidate if candidate in self.kept else "")
                if other:
                    raise EngineError(
                        f"'{urn}' has the alias '{candidate}', which '{other}' has already",
                        "The resource was not registered",
                        "Give the alias to one of them",
                    )
                self.aliased[candidate] = urn
                self._alias_of[urn] = candidate
            self.kept.add(candidate)
            return old
        return None

    def _aliases(self, goal: Goal) -> list[str]:
        """The URNs that the resource may have had, its parent's former names included."""
        own = [self._alias_urn(goal, alias) for alias in goal.aliases]
        found = dict.fromkeys(own)
        if parent_alias := self._alias_of.get(goal.parent):
            for kind, name in [
                (goal.type, goal.name),
                *((_urn.kind(urn), _urn.name(urn)) for urn in own),
            ]:
                # Children are commonly named after their parent.
                parent_name = _urn.name(goal.parent)
                if name.startswith(parent_name):
                    renamed = _urn.name(parent_alias) + name.removeprefix(parent_name)
                else:
                    renamed = name
                found[_urn.make(self._stack, self._project, parent_alias, kind, renamed)] = None
        return list(found)

    def _alias_urn(self, goal: Goal, alias: Alias) -> str:
        if alias.urn:
            return alias.urn
        parent = alias.parent or goal.parent
        if alias.parent:
            parent = self._alias_of.get(alias.parent, alias.parent)
        if alias.no_parent:
            parent = ""
        return _urn.make(
            alias.stack or self._stack,
            alias.project or self._project,
            parent,
            alias.type or goal.type,
            alias.name or goal.name,
        )


def _changed(diff: Diff, old: ResourceState, new: ResourceState) -> list[str]:
    """The names of the properties that differ."""
    if diff.changed:
        return diff.changed
    before, after = reveal(old.inputs), reveal(new.inputs)
    return sorted(
        key
        for key in before.keys() | after.keys()
        if key not in before or key not in after or not equal(before[key], after[key])
    )


def _protected(urn: str, deed: str) -> EngineError:
    return EngineError(
        f"{urn} is protected and would be {deed}",
        "Nothing was done to it",
        "Remove `protect` from it in the program and run `up` once before",
    )
