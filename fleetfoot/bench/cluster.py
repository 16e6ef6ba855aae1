"""A cluster for the time of a bench: a control plane of its own, machines that come and go."""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetfoot import artifacts
from fleetfoot.cluster import Cluster
from fleetfoot.errors import FleetfootError
from fleetfoot.machines.fleet import Fleet
from fleetfoot.machines.network import NetworkSpec
from fleetfoot.machines.spec import BootImage, MachineSpec
from fleetfoot.paths import private_dir
from fleetfoot.stack import config, onboarding
from fleetfoot.stack.bootimage import boot_image
from fleetfoot.stack.inventory import render, service_names, zone
from fleetfoot.stack.join import node_credentials, node_inputs
from fleetfoot.stack.teardown import teardown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fleetfoot.machines.fleet import Machine

__all__ = ["STACK", "BenchCluster", "running"]

STACK = "bench"
_CONTROL = "control-1"
# Ranges of its own: a bench stands beside the user's stack.
_CONFIG: dict[str, Any] = {
    "network": {
        "cidr": "10.95.0.0/24",
        "uplink": "10.95.255.0/30",
        "pods": "10.96.0.0/16",
        "services": "10.97.0.0/16",
    },
    "pools": [
        {
            "name": "control",
            "backend": "nspawn",
            "image": "control",
            "count": 1,
            "memory": "3GiB",
            "groups": [group for group in config.GROUPS if group != "workers"],
        }
    ],
    "sample": {"enabled": False},
}


class BenchCluster:
    """A running control plane that workers can join.

    Attributes:
        fleet: Its machines.
        cluster: Its nodes.
        control: Address of the control machine.
    """

    def __init__(self, fleet: Fleet, control: str, images: dict[str, BootImage]) -> None:
        self.fleet = fleet
        self.cluster = Cluster(STACK)
        self.control = control
        self.images = images

    def address(self, name: str) -> str:
        """Return the address that a machine has or will have."""
        return self.fleet.network.address(name)

    def start(self, name: str, image: str, *, cpus: int, memory: int, disk: int) -> Machine:
        """Make a worker that joins; return when it answers on SSH.

        Args:
            name: Machine and node name.
            image: What it boots.
            cpus: Virtual CPUs.
            memory: MiB.
            disk: MiB.
        """
        node = node_inputs(STACK, [self.control], _CONFIG["network"]["pods"])
        spec = MachineSpec(name, image, "qemu", self.images[image], cpus, memory, disk)
        return self.fleet.create(spec, node_credentials(STACK, name, node))

    def drop(self, name: str) -> None:
        """Remove a worker and its node."""
        self.fleet.delete(name)
        self.cluster.forget(name)


@contextlib.contextmanager
def running(images: tuple[str, ...], progress: Callable[[str], None]) -> Iterator[BenchCluster]:
    """Bring a control plane up, and take it down again however the bench ends.

    Args:
        images: Images that workers will boot; built now unless they are cached.
        progress: Takes one line at a time for a person to follow.

    Raises:
        FleetfootError: Another bench runs on this host.
    """
    lock_file = private_dir(Path("/run/fleetfoot")) / "bench.lock"
    with lock_file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            raise FleetfootError(
                "another bench runs on this host",
                "both would measure each other",
                "wait for its end",
            ) from held
        artifacts.build(progress)
        boot = {name: BootImage(**boot_image(name)) for name in ("control", *images)}
        teardown(STACK, keep_state=False)  # what a killed bench left
        try:
            yield _up(boot, progress)
        finally:
            progress("removing the bench's machines")
            teardown(STACK, keep_state=False)


def _up(images: dict[str, BootImage], progress: Callable[[str], None]) -> BenchCluster:
    wanted = config.load(_CONFIG)
    pool = wanted.pools[0]
    ranges = wanted.network
    fleet = Fleet(
        NetworkSpec(STACK, ranges.cidr, ranges.uplink, zone(STACK), (ranges.pods, ranges.services))
    )
    fleet.create_network()
    progress("starting a control plane")
    aliases = tuple(service_names(pool.groups))
    spec = MachineSpec(
        _CONTROL, pool.name, pool.backend, images["control"], pool.cpus, pool.memory, 0, aliases
    )
    control = fleet.create(spec, {}).address
    inventory = render(STACK, wanted, {_CONTROL: control}, fleet.network.spec.gateway)
    playbook = {"stack": STACK, "name": "site", "playbook": "site.yml", "inventory": inventory}
    onboarding.run(playbook)
    return BenchCluster(fleet, control, images)
