"""A cluster for the time of a bench: a control plane of its own, machines that come and go."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fleetfoot import artifacts, etcd
from fleetfoot.cluster import Cluster
from fleetfoot.errors import FleetfootError
from fleetfoot.machines.fleet import Fleet
from fleetfoot.machines.network import NetworkSpec
from fleetfoot.machines.spec import BootImage, Budget, MachineSpec
from fleetfoot.paths import PROJECT, StackPaths, private_dir
from fleetfoot.shell import run
from fleetfoot.stack import config, onboarding, sides
from fleetfoot.stack.bootimage import boot_image
from fleetfoot.stack.fields import GROUPS
from fleetfoot.stack.inventory import render, service_names, zone
from fleetfoot.stack.join import node_credentials, node_inputs
from fleetfoot.stack.teardown import teardown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from fleetfoot.machines.fleet import Machine

__all__ = [
    "CONTROL",
    "CONTROL_POOL",
    "NETWORK",
    "STACK",
    "BenchCluster",
    "on_cpus",
    "running",
    "shipped",
]

STACK = "bench"
_QUOTA_SECONDS = 120
CONTROL = "control-1"
# Ranges of its own: a bench stands beside the user's stack.
NETWORK = {
    "cidr": "10.95.0.0/24",
    "uplink": "10.95.255.0/30",
    "pods": "10.96.0.0/16",
    "services": "10.97.0.0/16",
}
CONTROL_POOL: dict[str, Any] = {
    "name": "control",
    "backend": "nspawn",
    "image": "control",
    "count": 1,
    "memory": "3GiB",
    "groups": [group for group in GROUPS if group != "workers"],
    "volumes": list(etcd.DATA.values()),
}
_CONFIG = {"network": NETWORK, "pools": [CONTROL_POOL], "sample": {"enabled": False}}


def shipped(stack: str, key: str) -> Any:
    """Return what a stack that comes with the project has.

    Args:
        stack: Its name.
        key: A key of its configuration, without `fleetfoot:`.
    """
    return yaml.safe_load((PROJECT / f"Pulumi.{stack}.yaml").read_text())["config"][
        f"fleetfoot:{key}"
    ]


class BenchCluster:
    """A running control plane that workers can join.

    Attributes:
        fleet: Its machines.
        cluster: Its nodes.
        control: Address of the first control machine.
    """

    def __init__(
        self,
        wanted: config.StackConfig,
        fleet: Fleet,
        control: str,
        images: dict[str, BootImage],
    ) -> None:
        self._wanted = wanted
        self.fleet = fleet
        self.cluster = Cluster(STACK)
        self.control = control
        self.images = images

    def sizes(self) -> dict[str, Any]:
        """Return what machines and groups of apiservers have, for the setup of a report."""
        return {
            "memory_mib": {pool.name: pool.memory for pool in self._wanted.pools},
            "apiservers": self._wanted.apiservers.model_dump(),
        }

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
        node = node_inputs(STACK, [self.control], NETWORK["pods"])
        spec = MachineSpec(name, image, "qemu", self.images[image], cpus, memory, disk)
        return self.fleet.create(spec, node_credentials(STACK, name, node))

    def apply(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        """Make Kubernetes objects, or make them what they should be, in one call."""
        listed = {"apiVersion": "v1", "kind": "List", "items": manifests}
        run(
            self.cluster.command("apply", "--server-side", "-f", "-"),
            stdin=json.dumps(listed),
        )

    def make_workplace(self) -> None:
        """Make what the offline side works in; its pods are refused until its quotas are known."""
        self.apply(sides.workplace())
        known = ["--for=jsonpath={.status.hard}", f"--timeout={_QUOTA_SECONDS}s"]
        place = f"--namespace={sides.OFFLINE_NAMESPACE}"
        self.cluster.kubectl("wait", "resourcequotas", "--all", place, *known)

    def drop(self, name: str) -> None:
        """Remove a worker and its node."""
        self.fleet.delete(name)
        self.cluster.forget(name)


@contextlib.contextmanager
def running(
    images: tuple[str, ...],
    progress: Callable[[str], None],
    *,
    changes: Mapping[str, Any] | None = None,
    cpus: Collection[int] = (),
    memory: bool = False,
) -> Iterator[BenchCluster]:
    """Bring a control plane up, and take it down again however the bench ends.

    Args:
        images: Images that workers will boot; built now unless they are cached.
        progress: Takes one line at a time for a person to follow.
        changes: Keys of the stack's configuration that this bench wants otherwise.
        cpus: The host's CPUs that the control machine is kept on; all if there are none.
        memory: Whether volumes are kept in memory, for a bench of something else than the disk,
            to which everybody on the host writes.

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
        _clear()  # what a killed bench left
        if memory:
            volumes = private_dir(StackPaths(STACK).volumes)
            run(["mount", "-t", "tmpfs", "-o", "mode=0700", "tmpfs", str(volumes)])
        try:
            yield _up(config.load({**_CONFIG, **(changes or {})}), boot, cpus, progress)
        finally:
            progress("removing the bench's machines")
            _clear()


def _clear() -> None:
    teardown(STACK, keep_state=True)
    volumes = StackPaths(STACK).volumes
    while volumes.is_mount():
        run(["umount", str(volumes)])
    teardown(STACK, keep_state=False)


@contextlib.contextmanager
def on_cpus(cpus: Collection[int]) -> Iterator[None]:
    """Keep what is started within on some of the host's CPUs (all of them if there are none)."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _up(
    wanted: config.StackConfig,
    images: dict[str, BootImage],
    cpus: Collection[int],
    progress: Callable[[str], None],
) -> BenchCluster:
    ranges = wanted.network
    fleet = Fleet(
        NetworkSpec(STACK, ranges.cidr, ranges.uplink, zone(STACK), (ranges.pods, ranges.services))
    )
    fleet.create_network()
    progress("starting a control plane")
    with on_cpus(cpus):
        addresses = {
            name: fleet.create(_spec(wanted, pool, name, images["control"]), {}).address
            for pool in wanted.pools
            for name in pool.machine_names
        }
    inventory = render(STACK, wanted, addresses, fleet.network.spec.gateway)
    playbook = {"stack": STACK, "name": "site", "playbook": "site.yml", "inventory": inventory}
    onboarding.run(playbook)
    return BenchCluster(wanted, fleet, addresses[CONTROL], images)


def _spec(
    wanted: config.StackConfig, pool: config.PoolConfig, name: str, image: BootImage
) -> MachineSpec:
    return MachineSpec(
        name,
        pool.name,
        pool.backend,
        image,
        pool.cpus,
        pool.memory,
        0,
        tuple(service_names(pool.groups)),
        volumes=pool.volumes,
        budgets=tuple(Budget(**budget) for budget in wanted.budgets(pool)),
    )
