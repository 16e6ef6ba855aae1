"""Order of steps on random graphs, and crashes at any save, without processes."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfoot.engine import _graph as graph
from fleetfoot.engine import _urn as urns
from fleetfoot.engine._deployment import Deployment
from fleetfoot.engine._events import EventSink, Summary
from fleetfoot.engine._goal import Goal
from fleetfoot.engine._planner import Planner
from fleetfoot.engine._provider import Call, Checked, Diff, Provider, ReadResult
from fleetfoot.engine._registry import Registry
from fleetfoot.engine._snapshot import Snapshot
from fleetfoot.engine._state import Checkpoint, ResourceState
from fleetfoot.engine._values import Unknown, contains

STACK, PROJECT, TYPE = "dev", "demo", "test:index:Thing"


class Killed(BaseException):
    """The process is no more."""


class World(Provider):
    """A provider and all that exists; ids follow from the inputs."""

    def __init__(self) -> None:
        self.things: dict[str, dict[str, Any]] = {}
        self.log: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        # Once the engine is killed, nothing more is done by any of its threads.
        self.dead = False

    def check_config(self, inputs: dict[str, Any]) -> Checked:
        return Checked(inputs)

    def diff_config(self, _old: dict[str, Any], _new: dict[str, Any]) -> Diff:
        return Diff(None)

    def configure(self, _inputs: dict[str, Any]) -> World:
        return self

    def check(self, call: Call) -> Checked:
        return Checked(dict(call.inputs))

    def diff(self, call: Call) -> Diff:
        old, new = call.old_inputs, call.inputs
        changed = [key for key in new if contains(new[key], Unknown) or old.get(key) != new[key]]
        replaces = [key for key in changed if key.startswith("fixed")]
        return Diff(bool(changed), replaces, changed, bool(replaces) and new.get("first") is True)

    def create(self, call: Call) -> tuple[str, dict[str, Any]]:
        with self.lock:
            self._alive()
            thing = self._id(call)
            self.log.append(("create", urns.name(call.urn)))
            self.things[thing] = dict(call.inputs)
            return thing, dict(call.inputs)

    def update(self, call: Call) -> dict[str, Any]:
        with self.lock:
            self._alive()
            self.log.append(("update", urns.name(call.urn)))
            assert call.id in self.things
            self.things[call.id] = dict(call.inputs)
            return dict(call.inputs)

    def read(self, call: Call) -> ReadResult:
        return ReadResult(call.id if call.id in self.things else "", call.old_outputs)

    def delete(self, call: Call) -> None:
        with self.lock:
            self._alive()
            self.log.append(("delete", urns.name(call.urn)))
            self.things.pop(call.id, None)

    def pending_id(self, call: Call) -> str:
        return self._id(call)

    def close(self) -> None:
        pass

    def _alive(self) -> None:
        if self.dead:
            raise Killed

    def _id(self, call: Call) -> str:
        # With `first`, the replacement has the old one's id, as named things have.
        version = "" if call.inputs.get("first") else f"-{call.inputs['fixed']}"
        return urns.name(call.urn) + version


def urn(name: str) -> str:
    return urns.make(STACK, PROJECT, "", TYPE, name)


class Run:
    """One update of a program that is a list of goals."""

    def __init__(self, base: Checkpoint, world: World, saves: int = 0) -> None:
        self.saved = base
        self.left = saves

        def save(checkpoint: Checkpoint) -> None:
            self.left -= 1
            if self.left == 0 or world.dead:
                world.dead = True
                raise Killed
            # Through JSON: what is not in the file is forgotten.
            document = json.loads(json.dumps(checkpoint.to_json(str, "v1:x:y")))
            self.saved = Checkpoint.from_json(document, str)

        self.snapshot = Snapshot(base, save)
        self.registry = Registry({"test": lambda: world}, base.resources)
        self.summary = Summary("update")
        self.deployment = Deployment(
            self.snapshot, self.registry, EventSink(), self.summary, parallel=4, preview=False
        )
        self.base = base

    def up(self, goals: list[Goal]) -> None:
        planner = Planner(
            STACK,
            PROJECT,
            self.base.resources,
            self.registry,
            preview=False,
            interrupted=[item.resource for item in self.snapshot.interrupted],
        )

        def register(goal: Goal) -> ResourceState:
            with planner.lock:
                actions = planner.plan(goal)
            return self.deployment.run(actions)

        provider = register(Goal(type="pulumi:providers:test", name="default", custom=True))
        for goal in goals:
            goal.provider = f"{provider.urn}::{provider.id}"
            register(goal)
        resources = self.snapshot.resources()
        old = set(self.base.resources)
        condemned = [
            item
            for item in resources
            if item.delete or (item in old and item.urn not in planner.kept)
        ]
        self.deployment.delete_all(condemned, resources)
        self.deployment.clear_interrupted()
        assert self.summary.ok, self.summary.errors
        self.snapshot.write()


def goals(spec: list[tuple[int, bool, list[int]]], versions: list[int]) -> list[Goal]:
    """One goal a tuple: plain version, delete-before-replace, earlier ones it needs."""
    found = []
    for index, (plain, first, needs) in enumerate(spec):
        name = f"n{index}"
        on = sorted({f"n{need % index}" for need in needs}) if index else []
        inputs: dict[str, Any] = {"plain": plain, "fixed": versions[index], "first": first}
        depends = {key: [] for key in inputs}
        for other in on:
            # What is made from another's fixed value is made anew with it.
            inputs[f"fixed-{other}"] = 0
            depends[f"fixed-{other}"] = [urn(other)]
        found.append(
            Goal(
                type=TYPE,
                name=name,
                custom=True,
                inputs=inputs,
                dependencies=[urn(other) for other in on],
                property_dependencies=depends,
            )
        )
    return found


specs = st.lists(
    st.tuples(st.integers(0, 1), st.booleans(), st.lists(st.integers(0, 20), max_size=3)),
    min_size=1,
    max_size=7,
)
versions = st.lists(st.integers(0, 1), min_size=7, max_size=7)


def needs_of(program: list[Goal]) -> dict[str, set[str]]:
    return {goal.name: {urns.name(item) for item in goal.dependencies} for goal in program}


@settings(deadline=None)
@given(specs)
def test_creations_follow_and_deletions_precede_dependencies(
    spec: list[tuple[int, bool, list[int]]],
) -> None:
    world = World()
    program = goals(spec, [0] * 7)
    run = Run(Checkpoint("s"), world)
    run.up(program)
    created = [name for op, name in world.log if op == "create"]
    for name, needed in needs_of(program).items():
        for other in needed:
            assert created.index(other) < created.index(name)
    assert graph.in_order(run.saved.resources)

    world.log.clear()
    last = Run(run.saved, world)
    resources = last.snapshot.resources()
    last.deployment.delete_all(resources, resources)
    deleted = [name for op, name in world.log if op == "delete"]
    assert sorted(deleted) == sorted(created)
    for name, needed in needs_of(program).items():
        for other in needed:
            assert deleted.index(name) < deleted.index(other)
    assert world.things == {}
    assert last.saved.resources == []


@settings(deadline=None)
@given(specs, versions, versions)
def test_replacements_cascade_and_leave_nothing_behind(
    spec: list[tuple[int, bool, list[int]]], before: list[int], after: list[int]
) -> None:
    world = World()
    first = Run(Checkpoint("s"), world)
    first.up(goals(spec, before))
    world.log.clear()
    second = Run(first.saved, world)
    program = goals(spec, after)
    second.up(program)
    log = world.log
    needed = needs_of(program)
    for index, goal in enumerate(program):
        gone_first = before[index] != after[index] and spec[index][1]
        if not gone_first:
            continue
        # Who has a property made of it goes before it and comes back after it.
        for name, others in needed.items():
            if goal.name in others:
                assert log.index(("delete", name)) < log.index(("delete", goal.name))
                assert log.index(("create", goal.name)) < log.index(("create", name))
    assert len(world.things) == len(program)
    live = [item for item in second.saved.resources if item.type == TYPE]
    assert sorted(item.id for item in live) == sorted(world.things)
    assert not any(item.delete or item.pending_replacement for item in live)
    assert graph.in_order(second.saved.resources)

    world.log.clear()
    Run(second.saved, world).up(goals(spec, after))
    assert world.log == []


@settings(deadline=None, max_examples=300)
@given(specs, versions, versions, st.integers(1, 40), st.integers(1, 40))
def test_killed_at_any_save_the_next_run_converges(
    spec: list[tuple[int, bool, list[int]]],
    before: list[int],
    after: list[int],
    once: int,
    twice: int,
) -> None:
    world = World()
    state = Checkpoint("s")
    for wanted, saves in ((before, once), (after, twice), (after, 0)):
        world.dead = False
        run = Run(state, world, saves)
        with contextlib.suppress(Killed):
            run.up(goals(spec, wanted))
        state = run.saved
        assert graph.in_order([item for item in state.resources if not item.delete])
        known = {item.id for item in state.resources}
        known |= {
            world.pending_id(Call(op.resource.urn, inputs=op.resource.inputs))
            for op in state.pending
            if op.resource.type == TYPE
        }
        # Nothing exists that state does not know of.
        assert set(world.things) <= known
    live = [item for item in state.resources if item.type == TYPE]
    assert sorted(item.id for item in live) == sorted(world.things)
    assert len(live) == len(spec)
    assert state.pending == []
    for item in live:
        assert world.things[item.id] == item.inputs
