"""What a machine is, for every backend."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fleetfoot.machines.network import Network
    from fleetfoot.machines.process import Daemon

__all__ = ["IDLE", "Backend", "BootImage", "Budget", "MachineSpec", "Placement"]

#: Weight of what runs while nobody else wants to, and makes room at once.
IDLE = 0


@dataclass(frozen=True)
class BootImage:
    """What a machine boots.

    Attributes:
        name: Image name, a folder under images/.
        digest: Content key of the build.
        path: Disk image, or the tree of an nspawn image.
        kernel: Kernel for direct boot; empty when the disk has a boot loader.
        initrd: Initial RAM disk for direct boot; may be empty.
        cmdline: Kernel command line for direct boot.
        seed: How identity is given: `credentials` (systemd) or `cloud-init` (NoCloud disk).
    """

    name: str
    digest: str
    path: str
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    seed: str = "credentials"


@dataclass(frozen=True)
class Budget:
    """What one service of a machine may use of the machine's CPU and memory.

    Attributes:
        name: Name by which the service finds it, `/run/fleetfoot/budgets/<name>` on the machine.
        cpus: CPU time in CPUs; 0 is no bound.
        memory: MiB; 0 is no bound.
        weight: Share of contended CPU time, 1 to 10000 as systemd's CPUWeight=; or `IDLE`.
    """

    name: str
    cpus: float = 0
    memory: int = 0
    weight: int = 100


@dataclass(frozen=True)
class MachineSpec:
    """One machine, before it exists.

    Attributes:
        name: Host name, a DNS label, unique in the stack.
        pool: Pool it belongs to.
        backend: `qemu` or `nspawn`.
        image: What it boots.
        cpus: Virtual CPUs (qemu), CPU time in CPUs (nspawn).
        memory: MiB.
        disk: MiB of writable space (qemu).
        aliases: Further names in the stack's zone.
        volumes: Folders whose contents outlive the machine (nspawn).
        budgets: Bounds within the machine's, for those backends whose machines cannot set them
            from inside (nspawn on a host with cgroup v1).
    """

    name: str
    pool: str
    backend: str
    image: BootImage
    cpus: float
    memory: int
    disk: int
    aliases: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    budgets: tuple[Budget, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the specification as JSON-compatible data."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> MachineSpec:
        """Return the specification that `plain` gave."""
        return cls(
            **{
                **data,
                "image": BootImage(**data["image"]),
                "aliases": tuple(data["aliases"]),
                "volumes": tuple(data["volumes"]),
                "budgets": tuple(Budget(**budget) for budget in data.get("budgets", ())),
            }
        )


@dataclass(frozen=True)
class Placement:
    """Where a machine stands: what a backend needs beside the specification.

    Attributes:
        folder: The machine's own folder (0700).
        network: The stack's network.
        address: Its IPv4 address.
        credentials: Name to file (0600) of what it is given at boot.
    """

    folder: Path
    network: Network
    address: str
    credentials: dict[str, Path] = field(default_factory=dict)


class Backend(Protocol):
    """Where machines come from. A new cloud is one module with this class.

    Every method may be repeated after it was cut off at any point.
    """

    def start(self, spec: MachineSpec, place: Placement) -> None:
        """Make the machine if it does not exist, and boot it if it does not run."""

    def running(self, name: str, place: Placement) -> Daemon | None:
        """Return the process that is the machine, if it runs."""

    def stop(self, name: str, place: Placement) -> None:
        """Shut it down, by force when it does not follow; keep its disk."""

    def delete(self, name: str, place: Placement) -> None:
        """Stop it and remove what it left on the host, except volumes."""
