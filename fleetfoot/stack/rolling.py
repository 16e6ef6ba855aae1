"""How machines come, change and go without the pool losing more than it may.

The gates live in this process: one provider process serves a whole run, under either engine. A
failed machine closes its pool's gate for the rest of the run, so the pool keeps its last-known-good
image on all machines that were not reached.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fleetfoot.cluster import Cluster
from fleetfoot.errors import FleetfootError
from fleetfoot.machines.fleet import Fleet
from fleetfoot.machines.spec import BootImage, MachineSpec
from fleetfoot.stack.join import node_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["MachineInputs", "create", "delete", "update"]


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
        )


@dataclass
class _Gate:
    """Lets a pool's machines through, so many at a time, until one fails."""

    turn: threading.Condition = field(default_factory=threading.Condition)
    inside: int = 0
    failed: str = ""


_gates: dict[tuple[str, str], _Gate] = {}
_gates_lock = threading.Lock()


@contextlib.contextmanager
def _turn(inputs: MachineInputs) -> Iterator[None]:
    """Wait for this machine's turn in its pool.

    Raises:
        FleetfootError: Another machine of the pool failed in this run.
    """
    roll = inputs.props.get("roll") or {}
    width = max(1, int(roll.get("max_surge", 0)) + int(roll.get("max_unavailable", 1)))
    pool = inputs.spec.pool
    with _gates_lock:
        gate = _gates.setdefault((inputs.stack, pool), _Gate())
    with gate.turn:
        gate.turn.wait_for(lambda: gate.failed or gate.inside < width)
        if gate.failed:
            raise FleetfootError(
                f"the roll of pool {pool} stopped at {gate.failed}",
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
    if leftover is not None and not leftover.running and inputs.node is not None:
        fleet.delete(inputs.name)  # a node's disk is worth nothing after a crash: start clean
    credentials = node_credentials(inputs.stack, inputs.name, inputs.node) if inputs.node else {}
    machine = fleet.create(inputs.spec, credentials)
    return {"address": machine.address, "host_key": machine.host_key, "started": machine.started}


def update(old: MachineInputs, new: MachineInputs) -> dict[str, Any]:
    """Replace a machine by one of the new specification, in its pool's turn.

    Raises:
        FleetfootError: The new one did not become Ready; the old one is put back.
    """
    with _turn(new):
        _retire(old)
        try:
            outputs = create(new)
            if new.node is not None:
                Cluster(new.stack).wait_ready(new.name)
        except FleetfootError as failed:
            Fleet.of_stack(new.stack).delete(new.name)
            create(old)
            raise FleetfootError(
                f"{new.name} did not become Ready with {new.spec.image.name} of"
                f" {new.spec.image.digest[:12]}: {failed}",
                "it runs its last-known-good image again, and the roll stops here",
                "mend the image or take the change back, then run it again",
            ) from failed
        if new.node is not None:
            Cluster(new.stack).uncordon(new.name)
        return outputs


def delete(inputs: MachineInputs) -> None:
    """Drain the node, if it is one, and remove the machine."""
    _retire(inputs)
    if inputs.node is not None:
        cluster = Cluster(inputs.stack)
        # The control plane may be gone before its nodes when a half-made stack is taken down.
        with contextlib.suppress(FleetfootError):
            cluster.forget(inputs.name)


def _retire(inputs: MachineInputs) -> None:
    fleet = Fleet.of_stack(inputs.stack)
    machine = fleet.read(inputs.name)
    cluster = Cluster(inputs.stack)
    if inputs.node is not None and machine is not None and machine.running and cluster.exists:
        with contextlib.suppress(FleetfootError):
            cluster.drain(inputs.name)
    if machine is None:
        return
    if inputs.node is None:
        fleet.stop(inputs.name)
    fleet.delete(inputs.name)
