"""The machines of one stack: network, identity and backend put together.

What a machine is stands in `.fleetfoot/<stack>/machines/<name>/machine.json`, so that it can be
found, entered and removed without the engine's state.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fleetfoot.errors import FleetfootError
from fleetfoot.machines.identity import (
    network_file,
    pin_host_key,
    resolv_conf,
    ssh_key,
    unpin_host_key,
)
from fleetfoot.machines.network import Network, NetworkSpec
from fleetfoot.machines.nspawn import Nspawn
from fleetfoot.machines.qemu import Qemu
from fleetfoot.machines.spec import Backend, MachineSpec, Placement
from fleetfoot.paths import PROJECT, StackPaths, private_dir, write_private

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BACKENDS", "Fleet", "Machine"]

# A new cloud is one module and one line here.
BACKENDS: dict[str, Backend] = {"nspawn": Nspawn(), "qemu": Qemu()}


@dataclass(frozen=True)
class Machine:
    """A machine that exists.

    Attributes:
        spec: What it was made from.
        address: Its IPv4 address.
        host_key: Its SSH host key, public line.
        started: Start of its process in seconds since the epoch; 0 when it does not run.
    """

    spec: MachineSpec
    address: str
    host_key: str
    started: float

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self.started > 0


class Fleet:
    """All machines of a stack; every method may be repeated."""

    def __init__(self, network: NetworkSpec) -> None:
        self.network = Network(network)
        self.paths = StackPaths(network.stack)

    @classmethod
    def of_stack(cls, stack: str) -> Fleet:
        """Return the fleet of a stack that exists.

        Raises:
            FleetfootError: There is no such stack on this host.
        """
        record = StackPaths(stack).network / "network.json"
        try:
            return cls(NetworkSpec(**json.loads(record.read_text())))
        except FileNotFoundError as missing:
            raise FleetfootError(
                f"there is no stack {stack!r} here", "nothing of it runs", _how_to_make(stack)
            ) from missing

    def create_network(self) -> str:
        """Make the network and the key that opens the machines; return the public key."""
        write_private(
            self.paths.network / "network.json", json.dumps(asdict(self.network.spec), indent=1)
        )
        self.network.create()
        return ssh_key(self.paths.ssh_key, f"fleetfoot-{self.paths.stack}")

    def delete_network(self) -> None:
        """Remove the network and the records of addresses."""
        self.network.delete()
        shutil.rmtree(self.paths.network, ignore_errors=True)
        shutil.rmtree(self.paths.run, ignore_errors=True)

    def create(self, spec: MachineSpec, credentials: Mapping[str, str]) -> Machine:
        """Make the machine and wait until it answers on SSH.

        Args:
            spec: What to make.
            credentials: Further systemd credentials, name to content.
        """
        folder = private_dir(self.paths.machines / spec.name)
        address = self.network.address(spec.name)
        key_file = folder / "ssh_host_ed25519_key"
        host_key = ssh_key(key_file, spec.name)
        given = {
            "system.hostname": spec.name,
            "ssh.authorized_keys.root": ssh_key(self.paths.ssh_key, "fleetfoot"),
            "fleetfoot.ssh-host-key": key_file.read_text(),
            "network.network.50-fleetfoot": network_file(self.network.spec, address),
            "fleetfoot.resolv-conf": resolv_conf(self.network.spec),
            **credentials,
        }
        files = {
            name: write_private(folder / "credentials" / name, content)
            for name, content in given.items()
        }
        record = {"spec": spec.plain(), "address": address, "host_key": host_key}
        write_private(folder / "machine.json", json.dumps(record, indent=1))
        names = [spec.name, f"{spec.name}.{self.network.spec.zone}", address]
        pin_host_key(self.paths.known_hosts, [address, *names[:2]], host_key)
        self.network.set_names(spec.name, address, [spec.name, *spec.aliases])
        BACKENDS[spec.backend].start(spec, self._place(spec.name, address, files))
        return self.read(spec.name) or Machine(spec, address, host_key, 0)

    def read(self, name: str) -> Machine | None:
        """Return the machine as it is, running or not; None when it does not exist."""
        record = self.paths.machines / name / "machine.json"
        try:
            data: dict[str, Any] = json.loads(record.read_text())
        except FileNotFoundError:
            return None
        spec = MachineSpec.from_plain(data["spec"])
        daemon = BACKENDS[spec.backend].running(name, self._place(name, data["address"], {}))
        return Machine(spec, data["address"], data["host_key"], daemon.wall if daemon else 0)

    def all(self) -> list[Machine]:
        """Return every machine of the stack, by name."""
        if not self.paths.machines.exists():
            return []
        names = sorted(folder.name for folder in self.paths.machines.iterdir())
        return [machine for name in names if (machine := self.read(name)) is not None]

    def stop(self, name: str) -> None:
        """Shut a machine down and keep it."""
        machine = self.read(name)
        if machine is not None:
            BACKENDS[machine.spec.backend].stop(name, self._place(name, machine.address, {}))

    def delete(self, name: str) -> None:
        """Remove a machine with its names and keys; volumes stay."""
        machine = self.read(name)
        if machine is None:
            shutil.rmtree(self.paths.machines / name, ignore_errors=True)
            return
        self.network.drop_names(name)
        unpin_host_key(self.paths.known_hosts, machine.address)
        BACKENDS[machine.spec.backend].delete(name, self._place(name, machine.address, {}))
        with contextlib.suppress(OSError):
            self.paths.machines.rmdir()

    def _place(self, name: str, address: str, credentials: dict[str, Any]) -> Placement:
        folder = self.paths.machines / name
        return Placement(folder, self.network, address, credentials)


def _how_to_make(stack: str) -> str:
    known = sorted(
        path.name.removeprefix("Pulumi.").removesuffix(".yaml")
        for path in PROJECT.glob("Pulumi.*.yaml")
    )
    if stack in known:
        return f"`make up STACK={stack}` makes it"
    return (
        f"configured are {', '.join(known)}; for a new one copy Pulumi.local.yaml to"
        f" Pulumi.{stack}.yaml and give it other addresses"
    )
