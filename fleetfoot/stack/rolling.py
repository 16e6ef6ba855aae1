"""How machines come, change and go without the pool losing more than it may.

The gates live in this process: one provider process serves a whole run, under either engine. A
failed machine closes its pool's gate for the rest of the run, so the pool keeps its last-known-good
image on all machines that were not reached.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fleetfoot.cluster import Cluster
from fleetfoot.errors import FleetfootError
from fleetfoot.machines.fleet import Fleet
from fleetfoot.machines.spec import BootImage, Budget, MachineSpec
from fleetfoot.stack import control_plane, onboarding
from fleetfoot.stack.join import node_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["WHOLE_STACK", "MachineInputs", "create", "delete", "settle", "update"]

#: Environment variable, set while the whole stack goes: then no pod need be moved.
WHOLE_STACK = "FLEETFOOT_WHOLE_STACK_GOES"


@dataclass(frozen=True)
class MachineInputs:
    """The inputs of a Machine resource.

    Attributes:
        props: As Pulumi gives them.
    """

    props: Mapping[str, Any]

    @property
    def stack(self) -> str:
        """Stack name."""
        return str(self.props["stack"])

    @property
    def name(self) -> str:
        """Machine name."""
        return str(self.props["name"])

    @property
    def node(self) -> dict[str, Any] | None:
        """How it joins the cluster; None for machines that are no nodes."""
        return self.props.get("node") or None

    @property
    def spec(self) -> MachineSpec:
        """The machine's specification."""
        props = self.props
        return MachineSpec(
            name=self.name,
            pool=props["pool"],
            backend=props["backend"],
            image=BootImage(**props["image"]),
            cpus=float(props["cpus"]),
            memory=int(props["memory"]),
            disk=int(props["disk"]),
            aliases=tuple(props.get("aliases") or ()),
            volumes=tuple(props.get("volumes") or ()),
            budgets=tuple(
                Budget(b["name"], float(b["cpus"]), int(b["memory"]), int(b["weight"]))
                for b in props.get("budgets") or ()
            ),
        )


@dataclass
class _Gate:
    """Lets machines through, so many at a time, until one fails."""

    turn: threading.Condition = field(default_factory=threading.Condition)
    inside: int = 0
    failed: str = ""


_gates: dict[tuple[str, str], _Gate] = {}
_gates_lock = threading.Lock()


@contextlib.contextmanager
def _turn(inputs: MachineInputs) -> Iterator[None]:
    """Wait for this machine's turn in its pool, or in the control plane.

    Raises:
        FleetfootError: Another machine of them failed in this run.
    """
    roll = inputs.props.get("roll") or {}
    # With stand-ins no machine is missing; without, so many may be.
    width = max(1, int(roll.get("max_surge") or roll.get("max_unavailable", 1)))
    pool = f"pool {inputs.spec.pool}"
    if inputs.node is None:
        # Pools of control machines hold members of one etcd: two at once could be too many.
        width, pool = 1, "the control plane"
    with _gates_lock:
        gate = _gates.setdefault((inputs.stack, pool), _Gate())
    with gate.turn:
        gate.turn.wait_for(lambda: gate.failed or gate.inside < width)
        if gate.failed:
            raise FleetfootError(
                f"the roll of {pool} stopped at {gate.failed}",
                f"{inputs.name} keeps its last-known-good image",
                f"mend {gate.failed} or take the change back, then run it again",
            )
        gate.inside += 1
    try:
        yield
    except BaseException:
        with gate.turn:
            gate.failed = inputs.name
        raise
    finally:
        with gate.turn:
            gate.inside -= 1
            gate.turn.notify_all()


def create(inputs: MachineInputs) -> dict[str, Any]:
    """Make a machine and return its outputs: address, host key, start time (epoch seconds)."""
    fleet = Fleet.of_stack(inputs.stack)
    leftover = fleet.read(inputs.name)
    running = leftover is not None and leftover.running
    if inputs.node is not None and not running:
        if leftover is not None:
            fleet.delete(inputs.name)  # a node's disk is worth nothing after a crash: start clean
        # A Node object of a machine that is gone may still say Ready.
        with contextlib.suppress(FleetfootError):
            Cluster(inputs.stack).forget(inputs.name)
    credentials = node_credentials(inputs.stack, inputs.name, inputs.node) if inputs.node else {}
    machine = fleet.create(inputs.spec, credentials)
    return {"address": machine.address, "host_key": machine.host_key, "started": machine.started}


def update(old: MachineInputs, new: MachineInputs) -> dict[str, Any]:
    """Replace a machine by one of the new specification, in its pool's turn.

    One that only died is made again; a machine that is no node goes on with the disk it had.

    Raises:
        FleetfootError: Pods could not leave, or the new one did not come into service; then the
            old one is put back.
    """
    if not old.props.get("started") and old.spec == new.spec:
        return create(new)
    if new.node is None:
        control_plane.require_kept(new.stack, new.name, old.spec.volumes, new.spec.volumes)
        # Before its turn, for one that is down has to take its own before.
        control_plane.bring_back(new.stack, new.name)
        control_plane.wait_for_others(new.stack, new.name)
    with _turn(new), _surge(new):
        if new.node is None:
            onboarding.catch_up(new.stack)
            control_plane.require_members(new.stack, new.name)
        _drain(old)
        _remove(old)
        try:
            outputs = create(new)
            _into_service(new, outputs["address"])
        except Exception as failed:
            Fleet.of_stack(new.stack).delete(new.name)
            _into_service(old, create(old)["address"])
            raise _stopped(new, failed) from failed
        return outputs


def _into_service(inputs: MachineInputs, address: str) -> None:
    """Wait until a replaced machine does what it did, before the pool's next one goes.

    One control machine alone is set up by the stack's own run of site.yml, which follows.
    """
    if inputs.node is not None:
        Cluster(inputs.stack).wait_ready(inputs.name)
    else:
        control_plane.set_up(inputs.stack, inputs.name, {address})


@contextlib.contextmanager
def _surge(inputs: MachineInputs) -> Iterator[None]:
    """Let an extra machine of the new specification stand in for the one that is replaced.

    The first machine of a pool to fail does so here, before any of the old ones was touched.
    """
    if inputs.node is None or not (inputs.props.get("roll") or {}).get("max_surge"):
        yield
        return
    extra = _stand_in(inputs)
    try:
        try:
            create(extra)
            Cluster(extra.stack).wait_ready(extra.name)
        except Exception as failed:
            _remove(extra)
            raise _stopped(inputs, failed) from failed
        yield
    finally:
        settle(inputs)


def _stand_in(inputs: MachineInputs) -> MachineInputs:
    """Return the extra machine that stands in for one that is replaced."""
    return MachineInputs({**inputs.props, "name": f"{inputs.name}-surge"})


def settle(inputs: MachineInputs) -> None:
    """Remove the extra machine of a roll that ended, or that was killed.

    Where its pods cannot leave it stays, which harms nobody, and the next run tries again.
    """
    extra = _stand_in(inputs)
    if Fleet.of_stack(inputs.stack).read(extra.name) is None:
        return
    try:
        if not os.environ.get(WHOLE_STACK):
            _drain(extra)
    except FleetfootError as kept:
        print(f"{extra.name} stays for now: {kept}", file=sys.stderr, flush=True)
    else:
        _remove(extra)


def delete(inputs: MachineInputs) -> None:
    """Drain the node, if it is one, and remove the machine.

    Raises:
        FleetfootError: Pods could not leave; the machine stays in use.
    """
    if not os.environ.get(WHOLE_STACK):
        _drain(inputs)
    settle(inputs)
    _remove(inputs)


def _stopped(inputs: MachineInputs, failed: Exception) -> FleetfootError:
    return FleetfootError(
        f"{inputs.name} did not become Ready with {inputs.spec.image.name} of"
        f" {inputs.spec.image.digest[:12]}: {failed}",
        "it runs its last-known-good image again, and the roll stops here",
        "mend the image or take the change back, then run it again",
    )


def _drain(inputs: MachineInputs) -> None:
    """Move the pods of a running node elsewhere, if there is a cluster that could.

    Raises:
        FleetfootError: Some cannot leave; the node takes pods again.
    """
    machine = Fleet.of_stack(inputs.stack).read(inputs.name)
    cluster = Cluster(inputs.stack)
    if inputs.node is None or machine is None or not machine.running or not cluster.answers():
        return
    try:
        cluster.drain(inputs.name)
    except FleetfootError:
        cluster.uncordon(inputs.name)
        raise


def _remove(inputs: MachineInputs) -> None:
    fleet = Fleet.of_stack(inputs.stack)
    if inputs.node is None and not os.environ.get(WHOLE_STACK):
        fleet.stop(inputs.name)
    fleet.delete(inputs.name)
    cluster = Cluster(inputs.stack)
    if inputs.node is not None and not os.environ.get(WHOLE_STACK) and cluster.answers():
        cluster.forget(inputs.name)
