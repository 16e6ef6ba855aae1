"""The network of one stack: a namespace with a bridge, names, and a way out through the host.

    host ── veth ── namespace: router + bridge br0 + dnsmasq ── taps (VMs), veths (nspawn)

Addresses are given once per machine name and kept, so that a machine that comes back under its name
has its address again. Names resolve by dnsmasq in the namespace, which reads one file a machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.locks import alone
from fleetfoot.machines import process
from fleetfoot.paths import StackPaths, private_dir, write_private
from fleetfoot.shell import run, succeeds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["BRIDGE", "Network", "NetworkSpec", "tap_name"]

BRIDGE = "br0"
# Tries to connect for some seconds; run inside the namespace.
_CONNECT = """
import socket, sys, time
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close()
        sys.exit(0)
    except OSError:
        time.sleep(0.02)
sys.exit(1)
"""
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


@dataclass(frozen=True)
class NetworkSpec:
    """What the network of a stack looks like.

    Attributes:
        stack: Stack name; names the namespace, too.
        cidr: Machines' subnet; its first address is the gateway and name server.
        uplink: A /30 between host and namespace.
        zone: DNS zone of the machines.
        cluster: Ranges that only machines of the stack know the way to (pods, Services).
    """

    stack: str
    cidr: str
    uplink: str
    zone: str
    cluster: Sequence[str] = ()

    @property
    def gateway(self) -> str:
        """The namespace's own address on the bridge."""
        return str(next(ipaddress.ip_network(self.cidr).hosts()))

    @property
    def prefix(self) -> int:
        """Length of the subnet's prefix."""
        return ipaddress.ip_network(self.cidr).prefixlen

    @property
    def uplink_addresses(self) -> tuple[str, str]:
        """Host's and namespace's end of the uplink."""
        host, inside = list(ipaddress.ip_network(self.uplink).hosts())[:2]
        return str(host), str(inside)


class Network:
    """The running network of a stack; every method may be repeated."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        self.paths = StackPaths(spec.stack)
        self.namespace = f"fleetfoot-{spec.stack}"
        tag = hashlib.sha256(spec.stack.encode()).hexdigest()[:8]
        self._outer, self._inner = f"ff{tag}h", f"ff{tag}n"
        self._table = f"fleetfoot_{tag}"
        self._hosts = self.paths.network / "hosts.d"
        self._dns_record = self.paths.record("dnsmasq")
        self._dns_log = self.paths.network / "dnsmasq.log"

    # What is there

    @property
    def exists(self) -> bool:
        """Whether the namespace is there."""
        return Path("/run/netns", self.namespace).exists()

    @property
    def ready(self) -> bool:
        """Whether the namespace, its bridge, the uplink and the name server are there."""
        return (
            self.exists
            and succeeds(self.inside("ip", "link", "show", BRIDGE))
            and succeeds(["ip", "link", "show", self._outer])
            and succeeds(["nft", "list", "table", "ip", self._table])
            and process.find(self._dns_record) is not None
        )

    def inside(self, *argv: str) -> list[str]:
        """Return `argv` as a command that runs in the namespace.

        nsenter and not `ip netns exec`, which mounts /sys anew and so hides the cgroups.
        """
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *argv]

    # Make and unmake

    def create(self) -> None:
        """Make what is missing."""
        self._claim()
        if not self.exists:
            run(["ip", "netns", "add", self.namespace])
        run(self.inside("ip", "link", "set", "lo", "up"))
        self._create_bridge()
        self._create_uplink()
        self._create_masquerade()
        self._create_dns()

    def delete(self) -> None:
        """Remove all of it; what is absent already is no error."""
        dns = process.find(self._dns_record)
        if dns is not None:
            dns.end()
        for removal in (
            ["nft", "delete", "table", "ip", self._table],
            ["ip", "link", "delete", self._outer],
            ["ip", "netns", "delete", self.namespace],
        ):
            succeeds(removal)
        (self.paths.run / "owner").unlink(missing_ok=True)

    def _claim(self) -> None:
        """Refuse a stack name that another checkout on this host uses."""
        owner = self.paths.run / "owner"
        private_dir(owner.parent)
        holder = owner.read_text() if owner.exists() else ""
        mine = str(self.paths.project)
        if holder and holder != mine and self.exists:
            raise FleetfootError(
                f"the stack {self.spec.stack!r} already runs on this host, from {holder}",
                "two stacks of one name would share a network",
                "run `make down` there first, or choose another name with STACK=name",
            )
        write_private(owner, mine)

    def _create_bridge(self) -> None:
        if not succeeds(self.inside("ip", "link", "show", BRIDGE)):
            run(self.inside("ip", "link", "add", BRIDGE, "type", "bridge"))
        address = f"{self.spec.gateway}/{self.spec.prefix}"
        run(self.inside("ip", "address", "replace", address, "dev", BRIDGE))
        run(self.inside("ip", "link", "set", BRIDGE, "up"))
        run(self.inside("sysctl", "-qw", "net.ipv4.ip_forward=1"))

    def _create_uplink(self) -> None:
        host, inside = self.spec.uplink_addresses
        if not succeeds(["ip", "link", "show", self._outer]):
            self._refuse_overlap()
            peer = ["peer", "name", self._inner, "netns", self.namespace]
            run(["ip", "link", "add", self._outer, "type", "veth", *peer])
        run(["ip", "address", "replace", f"{host}/30", "dev", self._outer])
        run(["ip", "link", "set", self._outer, "up"])
        run(self.inside("ip", "address", "replace", f"{inside}/30", "dev", self._inner))
        run(self.inside("ip", "link", "set", self._inner, "up"))
        run(self.inside("ip", "route", "replace", "default", "via", host))
        for own in self.spec.cluster:
            # What a node does not know the way to must not try its luck outside.
            run(self.inside("ip", "route", "replace", "unreachable", own))
        run(["ip", "route", "replace", self.spec.cidr, "via", inside, "dev", self._outer])

    def _refuse_overlap(self) -> None:
        routes = json.loads(run(["ip", "-json", "route", "show"]))
        for ours in (self.spec.cidr, self.spec.uplink, *self.spec.cluster):
            for route in routes:
                if route["dst"] == "default":
                    continue
                if ipaddress.ip_network(ours).overlaps(ipaddress.ip_network(route["dst"])):
                    raise FleetfootError(
                        f"fleetfoot:network: {ours} overlaps {route['dst']}, which this host"
                        f" reaches through {route.get('dev', 'another route')}",
                        "machines of the stack could not be told from machines there",
                        "choose another range in Pulumi.<stack>.yaml",
                    )

    def _create_masquerade(self) -> None:
        if _FORWARD.read_text().strip() != "1":
            _FORWARD.write_text("1\n")
        run(
            ["nft", "-f", "-"],
            stdin=f"""
table ip {self._table}
delete table ip {self._table}
table ip {self._table} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {{ {self.spec.cidr}, {self.spec.uplink} }} oifname != "{self._outer}" masquerade
    }}
}}
""",
        )

    # Names

    def _create_dns(self) -> None:
        private_dir(self._hosts)
        if process.find(self._dns_record) is not None:
            return
        argv = self.inside(
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file",
            "--user=root",
            "--no-hosts",
            "--no-resolv",
            "--bind-interfaces",
            f"--listen-address={self.spec.gateway}",
            f"--addn-hosts={self._hosts}",
            f"--local=/{self.spec.zone}/",
            f"--domain={self.spec.zone}",
            "--local-ttl=1",
            "--log-facility=-",
            *(f"--server={server}" for server in _upstream_servers()),
        )
        started = process.start(self._dns_record, argv, log=self._dns_log)
        self.wait_for(self.spec.gateway, 53)
        process.still_running(started, self._dns_log, "dnsmasq")

    def wait_for(
        self, address: str, port: int, timeout: float = 10, alive: process.Daemon | None = None
    ) -> bool:
        """Return whether a TCP port in the stack answers within `timeout` seconds.

        Args:
            address: IPv4 address inside the namespace.
            port: TCP port.
            timeout: Seconds.
            alive: Gives up early when this process ends.
        """
        end = time.monotonic() + timeout
        command = self.inside(sys.executable, "-c", _CONNECT, address, str(port))
        while time.monotonic() < end and (alive is None or alive.alive):
            if succeeds([*command, str(min(2.0, max(0.1, end - time.monotonic())))]):
                return True
        return False

    def set_names(self, machine: str, address: str, names: Sequence[str]) -> None:
        """Let `names` (without the zone) resolve to `address`, beside those of other machines."""
        private_dir(self._hosts)
        full = [f"{name}.{self.spec.zone}" for name in names]
        write_private(self._hosts / machine, f"{address} {' '.join([*full, *names])}\n")
        self._reload_names()

    def drop_names(self, machine: str) -> None:
        """Forget the names of a machine."""
        (self._hosts / machine).unlink(missing_ok=True)
        self._reload_names()

    def _reload_names(self) -> None:
        dns = process.find(self._dns_record)
        if dns is not None:
            dns.send(signal.SIGHUP)

    # Addresses

    def address(self, machine: str) -> str:
        """Return the machine's address; the same one every time.

        Raises:
            FleetfootError: The subnet is full.
        """
        with self._addresses() as given:
            if machine not in given:
                given[machine] = self._free(given)
            return given[machine]

    def _free(self, given: dict[str, str]) -> str:
        subnet = ipaddress.ip_network(self.spec.cidr)
        taken = set(given.values())
        for host in list(subnet.hosts())[1:]:
            if str(host) not in taken:
                return str(host)
        for name in [name for name in given if not (self.paths.machines / name).exists()]:
            return given.pop(name)
        raise FleetfootError(
            f"fleetfoot:network.cidr: all {subnet.num_addresses - 3} addresses of {subnet} are"
            " given to machines",
            "no further machine can be made",
            "shrink a pool, or choose a larger subnet for a new stack",
        )

    @contextlib.contextmanager
    def _addresses(self) -> Iterator[dict[str, str]]:
        """Give the address map under a lock, and save it when it changed."""
        path = private_dir(self.paths.network) / "addresses.json"
        with alone(self.paths.network / "addresses.lock"):
            given: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
            before = dict(given)
            yield given
            if given != before:
                write_private(path, json.dumps(given, indent=1))

    # Taps

    def tap(self, machine: str, address: str, mac: str) -> str:
        """Make the machine's tap on the bridge and return its name.

        The MAC is told to the namespace beforehand: an address that does not answer yet is looked
        for once a second only, and a machine is found as soon as it speaks.
        """
        name = tap_name(machine)
        if not succeeds(self.inside("ip", "link", "show", name)):
            run(self.inside("ip", "tuntap", "add", "dev", name, "mode", "tap"))
        run(self.inside("ip", "link", "set", name, "master", BRIDGE, "up"))
        known = ["ip", "neighbour", "replace", address, "lladdr", mac, "nud", "permanent"]
        run(self.inside(*known, "dev", BRIDGE))
        return name

    def drop_tap(self, machine: str, address: str) -> None:
        """Remove the machine's tap; its address may be another machine's from now on."""
        succeeds(self.inside("ip", "neighbour", "delete", address, "dev", BRIDGE))
        succeeds(self.inside("ip", "link", "delete", tap_name(machine)))


def tap_name(machine: str) -> str:
    """Return the name of a machine's tap."""
    return "t" + hashlib.sha256(machine.encode()).hexdigest()[:10]


def _upstream_servers() -> list[str]:
    """Name servers of the host that can be reached from another namespace."""
    for source in ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"):
        try:
            lines = Path(source).read_text().splitlines()
        except FileNotFoundError:
            continue
        servers = [line.split()[1] for line in lines if line.startswith("nameserver ")]
        reachable = [s for s in servers if not ipaddress.ip_address(s).is_loopback]
        if reachable:
            return reachable
    return []
