"""Carrying steps out: providers are called, state is saved before and after each call."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from fleetfoot.engine import _graph, _marks, _urn
from fleetfoot.engine._errors import EngineError, InitFailedError, ProviderGoneError
from fleetfoot.engine._events import Step, Summary
from fleetfoot.engine._planner import Action, Op
from fleetfoot.engine._provider import Call, Provider, ReadResult
from fleetfoot.engine._state import ResourceState, now
from fleetfoot.engine._values import equal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fleetfoot.engine._events import EventSink
    from fleetfoot.engine._registry import Registry
    from fleetfoot.engine._snapshot import Snapshot

_DELETIONS = (Op.DELETE, Op.DELETE_REPLACED)
# What a replacement's parts count as: the creation stands for the whole.
_COUNTED = {str(Op.CREATE_REPLACEMENT): "replace", str(Op.DELETE_REPLACED): ""}


class Deployment:
    """The steps of one run.

    Args:
        snapshot: Where results are recorded.
        registry: Where providers come from.
        sink: Where events go.
        summary: What is counted.
        parallel: How many steps at once.
        preview: Whether nothing may change.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        registry: Registry,
        sink: EventSink,
        summary: Summary,
        *,
        parallel: int,
        preview: bool,
    ) -> None:
        self.snapshot, self.registry = snapshot, registry
        self._sink, self.summary = sink, summary
        self.preview = preview
        self._parallel = max(parallel, 1)
        self._slots = threading.Semaphore(self._parallel)
        # Set after the first failure or an interrupt: what runs may finish, nothing new begins.
        self.stopped = threading.Event()
        self._counting = threading.Lock()
        # What has gone or is to go in this run; what is deleted with it needs no deletion.
        self._deleting: set[str] = set()

    def run(self, actions: list[Action]) -> ResourceState:
        """Carries out the steps of one registration, one after the other.

        Returns:
            The resource as registered.

        Raises:
            EngineError: The run has been stopped.
            Exception: What a provider raised.
        """
        with self._slots:
            self._deleting |= {item.state.urn for item in actions if item.op in _DELETIONS}
            for action in actions:
                if self.stopped.is_set():
                    raise EngineError("The run is being stopped", f"{action.op} did not begin")
                self._perform(action)
        return actions[-1].state

    def _perform(self, action: Action) -> None:
        with self._telling(action.state, str(action.op), action.diffs):
            self._apply(action)

    @contextlib.contextmanager
    def _telling(
        self, state: ResourceState, op: str, diffs: list[str] | None = None
    ) -> Iterator[Step]:
        """Tells of a step's begin and end, and counts it."""
        counted = _COUNTED.get(op, op)
        step = Step(op, state.urn, state.type, state.name, list(diffs or ()), counted=counted)
        shown = not _urn.is_default_provider(state.urn) and op != Op.SKIP
        if shown:
            self._sink.begin(step)
        try:
            yield step
        except Exception as error:
            step.error = str(error)
            self.fail(f"{state.urn}: {error}")
            self.summary.steps.append(step)
            self._sink.end(step)
            raise
        if shown:
            with self._counting:
                if step.counted:
                    self.summary.counts[step.counted] += 1
                self.summary.steps.append(step)
            self._sink.end(step)

    def drain(self) -> None:
        """Waits until every step that has begun has ended."""
        for _ in range(self._parallel):
            self._slots.acquire()
        for _ in range(self._parallel):
            self._slots.release()

    def fail(self, message: str) -> None:
        """Notes an error; nothing new begins after it."""
        with self._counting:
            self.summary.errors.append(message)
        self.stopped.set()

    def _apply(self, action: Action) -> None:
        old, new = action.old, action.new
        if action.op is Op.SAME and old is not None and new is not None:
            self._same(old, new)
        elif action.op in (Op.CREATE, Op.CREATE_REPLACEMENT) and new is not None:
            self._create(old, new, condemns=action.condemns)
        elif action.op is Op.UPDATE and old is not None and new is not None:
            self._update(old, new)
        elif action.op in _DELETIONS and old is not None:
            self._delete(old, keep=action.op is Op.DELETE_REPLACED and not old.delete)

    def _same(self, old: ResourceState, new: ResourceState) -> None:
        new.id, new.outputs = old.id, dict(old.outputs)
        if _urn.is_provider(new.type):
            self.registry.put(new)
        _marks.mark_secrets(new)
        _marks.share_ciphertexts(old, new)
        self.snapshot.end(gone=old, new=new, write=_marks.differs(old, new))

    def _create(self, old: ResourceState | None, new: ResourceState, *, condemns: bool) -> None:
        begun = self.snapshot.begin(new, "creating") if not self.preview else None
        failure: InitFailedError | None = None
        try:
            if new.custom:
                try:
                    new.id, new.outputs = self._provider(new).create(self._call(new, "create"))
                except InitFailedError as error:
                    failure = error
                    _take_partial(new, error)
        except ProviderGoneError:
            # It did not come to an end itself: what it left is for the next run to find.
            raise
        except BaseException:
            self.snapshot.end(begun)
            raise
        new.created = new.modified = now()
        _marks.mark_secrets(new)
        if condemns and old is not None:
            old.delete = True
        gone = old if old is not None and old.pending_replacement else None
        self.snapshot.end(begun, gone=gone, new=new, write=not self.preview)
        if not self.preview:
            self._resumed(new)
        if failure is not None:
            raise failure

    def _resumed(self, new: ResourceState) -> None:
        """Clears the interrupted creations that the present one has completed."""
        for operation in self.snapshot.interrupted:
            begun = operation.resource
            if begun.urn != new.urn:
                continue
            known = (
                self._provider(new).pending_id(self._call(begun, "create")) if new.custom else ""
            )
            if known in ("", new.id):
                self.snapshot.end(cleared=operation)

    def _update(self, old: ResourceState, new: ResourceState) -> None:
        new.id = old.id
        _marks.share_ciphertexts(old, new)
        begun = self.snapshot.begin(new, "updating") if not self.preview else None
        failure: InitFailedError | None = None
        try:
            if new.custom:
                try:
                    new.outputs = self._provider(new).update(
                        self._call(new, "update", old_inputs=old.inputs, old_outputs=old.outputs)
                    )
                    new.modified = now()
                except InitFailedError as error:
                    failure = error
                    _take_partial(new, error)
                    # So that the next run sees the difference and tries again.
                    new.inputs = old.inputs
        except BaseException:
            self.snapshot.end(begun)
            raise
        _marks.mark_secrets(new)
        _marks.share_ciphertexts(old, new)
        self.snapshot.end(begun, gone=old, new=new, write=not self.preview)
        if failure is not None:
            raise failure

    def _delete(self, old: ResourceState, *, keep: bool) -> None:
        """Deletes a resource; `keep` leaves it in state as one whose replacement is to come."""
        if self.preview:
            old.pending_replacement = keep
            self.snapshot.end(gone=None if keep else old, write=False)
            return
        begun = self.snapshot.begin(old, "deleting")
        try:
            left = old.external or old.retain_on_delete or old.deleted_with in self._deleting
            if old.custom and not left:
                self._provider(old).delete(self._call(old, "delete", old_outputs=old.outputs))
        except BaseException:
            self.snapshot.end(begun)
            raise
        old.pending_replacement = keep
        self.snapshot.end(begun, gone=None if keep else old)

    # --- the end of an update, and destroy ---

    def delete_all(self, condemned: list[ResourceState], resources: list[ResourceState]) -> None:
        """Deletes resources, dependents first and independent ones side by side.

        Args:
            condemned: What is to go, in state order.
            resources: All there are, in state order.
        """
        protected = [item.urn for item in condemned if item.protect and not item.delete]
        for urn in protected:
            self.fail(
                f"{urn} is protected and would be deleted. Nothing was deleted. "
                "Remove `protect` from it in the program and run `up` once before"
            )
        if protected:
            return
        self._deleting |= {item.urn for item in condemned}

        def act(resource: ResourceState) -> bool:
            if resource.pending_replacement:
                # Its object is gone already; only its memory is left.
                self.snapshot.end(gone=resource, write=not self.preview)
                return True
            op = Op.DELETE_REPLACED if resource.delete else Op.DELETE
            # A failure has been told by then.
            with contextlib.suppress(Exception):
                self._perform(Action(op, resource, None))
                return True
            return False

        _graph.run_reversed(_graph.needs(condemned, resources), act, self._parallel, self.stopped)

    # --- refresh ---

    def refresh_all(self, resources: list[ResourceState]) -> None:
        """Reads every object and makes state say what is; what is gone leaves it."""
        independent: dict[ResourceState, set[ResourceState]] = {item: set() for item in resources}
        gone: set[ResourceState] = set()

        def act(resource: ResourceState) -> bool:
            if not resource.custom or _urn.is_provider(resource.type):
                return True
            if resource.pending_replacement or resource.external:
                return True
            with contextlib.suppress(Exception), self._telling(resource, "refresh") as step:
                call = self._call(resource, "read", old_outputs=resource.outputs)
                result = self._provider(resource).read(call)
                step.diffs = self._refreshed(resource, result, gone)
                if resource in gone:
                    step.counted = "delete"
                elif step.diffs and self.summary.kind == "refresh":
                    # An update counts what it changes, not what others changed before it.
                    step.counted = "update"
                return True
            return False

        _graph.run_reversed(independent, act, self._parallel, self.stopped)
        _marks.forget(gone, self.snapshot.resources())
        for resource in gone:
            self.snapshot.end(gone=resource, write=False)

    def _refreshed(
        self, resource: ResourceState, result: ReadResult, gone: set[ResourceState]
    ) -> list[str]:
        if not result.id:
            gone.add(resource)
            return ["gone"]
        before = resource.clone()
        resource.id = result.id
        resource.outputs = result.outputs
        resource.init_errors = result.init_errors
        if result.inputs is not None:
            resource.inputs = result.inputs
        _marks.mark_secrets(resource)
        _marks.share_ciphertexts(before, resource)
        for reason in result.init_errors:
            self._sink.say("warning", resource.urn, reason)
        names = before.outputs.keys() | resource.outputs.keys()
        changed = sorted(
            name
            for name in names
            if not equal(before.outputs.get(name), resource.outputs.get(name))
        )
        if changed or not equal(before.inputs, resource.inputs):
            resource.modified = now()
            return changed or ["inputs"]
        return []

    # --- interrupted creations ---

    def clear_interrupted(self, condemned: frozenset[str] = frozenset()) -> None:
        """Removes what earlier, killed runs began to create and the program no longer declares.

        Args:
            condemned: URNs that are about to be deleted; what goes with them needs no step.
        """
        for operation in self.snapshot.interrupted:
            resource = operation.resource
            if resource.deleted_with in condemned:
                self.snapshot.end(cleared=operation)
                continue
            alive = [item for item in self.snapshot.resources() if item.urn == resource.urn]
            if self.preview or self.stopped.is_set():
                return
            try:
                provider = self._provider(resource) if resource.custom else None
                call = self._call(resource, "delete", old_outputs=resource.inputs)
                object_id = provider.pending_id(call) if provider is not None else "none"
                # Made from the same inputs, the living one is the object itself.
                made = any(equal(item.inputs, resource.inputs) for item in alive)
                if not object_id and alive and not made:
                    if condemned:
                        # It is looked at again when what lives is gone.
                        continue
                    self._sink.say(
                        "warning",
                        resource.urn,
                        "its replacement was interrupted while being created and may exist still; "
                        "its id cannot be known, so look for it yourself",
                    )
                    continue
                if not made and provider and all(item.id != object_id for item in alive):
                    self._undo(provider, resource, object_id)
            except Exception as error:
                if self.summary.ok:
                    self.fail(
                        f"{resource.urn}, interrupted while creating, is still there: {error}"
                    )
                return
            self.snapshot.end(cleared=operation)

    def _undo(self, provider: Provider, resource: ResourceState, object_id: str) -> None:
        with self._telling(resource, "delete", ["interrupted create"]):
            outputs = resource.inputs
            if not object_id:
                # Completing it is the only way to learn its id.
                object_id, outputs = provider.create(self._call(resource, "create"))
            resource.id, resource.outputs = object_id, outputs
            provider.delete(self._call(resource, "delete", old_outputs=outputs))

    def _provider(self, resource: ResourceState) -> Provider:
        if _urn.is_provider(resource.type):
            return self.registry
        return self.registry.get(resource.provider)

    def _call(self, resource: ResourceState, verb: str, **more: Any) -> Call:
        return Call(
            resource.urn,
            resource.id,
            inputs=resource.inputs,
            ignore=tuple(resource.ignore_changes),
            timeout=resource.custom_timeouts.get(verb, 0.0),
            preview=self.preview,
            resumed=any(op.resource.urn == resource.urn for op in self.snapshot.interrupted),
            **more,
        )


def _take_partial(new: ResourceState, error: InitFailedError) -> None:
    new.id, new.outputs = error.object_id, error.outputs
    new.init_errors = error.reasons
    if error.inputs is not None:
        new.inputs = error.inputs
