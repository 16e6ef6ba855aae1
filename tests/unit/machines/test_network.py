from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.machines.network import Network, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

STACK = "unit-net"
SPEC = NetworkSpec(STACK, "10.86.0.0/28", "10.86.1.0/30", f"{STACK}.fleetfoot.internal")

ASK = """
import socket, sys
query = bytes.fromhex(sys.argv[2])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
s.sendto(query, (sys.argv[1], 53)); print(s.recv(512).hex())
"""


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network(SPEC)
    try:
        yield made
    finally:
        made.delete()
        shutil.rmtree(made.paths.root)
        shutil.rmtree(made.paths.run, ignore_errors=True)


def resolve(network: Network, name: str) -> list[str]:
    """Ask the stack's name server for A records, from inside its namespace."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = struct.pack(">6H", 1, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
    command = network.inside(sys.executable, "-c", ASK, SPEC.gateway, query.hex())
    answer = bytes.fromhex(subprocess.check_output(command, text=True))
    count = struct.unpack(">H", answer[6:8])[0]
    records = answer[len(query) :]
    return sorted(socket.inet_ntoa(records[16 * n + 12 : 16 * n + 16]) for n in range(count))


def test_made_twice_and_gone_without_a_trace(network: Network) -> None:
    network.create()
    network.create()
    assert network.ready
    network.delete()
    assert not network.exists
    ruleset = subprocess.check_output(["nft", "list", "tables"], text=True)
    assert network._table not in ruleset
    links = subprocess.check_output(["ip", "link"], text=True)
    assert network._outer not in links
    assert "10.86." not in subprocess.check_output(["ip", "route"], text=True)
    network.delete()


def test_names_resolve_and_pool_names_give_every_machine(network: Network) -> None:
    network.create()
    for machine in ("worker-1", "worker-2"):
        network.set_names(machine, network.address(machine), [machine, "workers"])
    assert resolve(network, f"worker-1.{SPEC.zone}") == ["10.86.0.2"]
    assert resolve(network, f"workers.{SPEC.zone}") == ["10.86.0.2", "10.86.0.3"]
    network.drop_names("worker-1")
    assert resolve(network, f"workers.{SPEC.zone}") == ["10.86.0.3"]


def test_an_address_stays_with_its_name(network: Network) -> None:
    assert network.address("a") == "10.86.0.2"
    assert network.address("b") == "10.86.0.3"
    assert network.address("a") == "10.86.0.2"


def test_a_full_subnet_is_told_with_the_field(network: Network) -> None:
    for n in range(13):
        network.address(f"m{n}")
        (network.paths.machines / f"m{n}").mkdir(parents=True)
    with pytest.raises(FleetfootError, match=r"network\.cidr.*shrink a pool"):
        network.address("one-too-many")


def test_a_range_the_host_uses_is_refused_before_anything_is_made() -> None:
    other = Network(NetworkSpec("unit-net-2", "10.86.0.0/28", "10.86.1.0/30", "x.internal"))
    first = Network(SPEC)
    try:
        first.create()
        with pytest.raises(FleetfootError, match="overlaps"):
            other.create()
    finally:
        for made in (other, first):
            made.delete()
            shutil.rmtree(made.paths.root, ignore_errors=True)
            shutil.rmtree(made.paths.run, ignore_errors=True)
