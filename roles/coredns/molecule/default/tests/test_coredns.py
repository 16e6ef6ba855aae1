"""It answers for the cluster's names and passes others on."""

import json
import os
import socket
import struct
from pathlib import Path

FACTS = json.loads((Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "machine.json").read_text())


def resolve(name):
    """Ask for the IPv4 address of `name`; return code and addresses (RFC 1035)."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    question = labels + b"\0" + struct.pack(">HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + question, (FACTS["address"], 53))
        answer = client.recv(4096)
    _, flags, _, count, _, _ = struct.unpack(">6H", answer[:12])
    found, at = [], 12 + len(question)
    for _ in range(count):
        at += 2 if answer[at] >= 0xC0 else answer.index(b"\0", at) - at + 1
        kind, _, _, length = struct.unpack(">HHIH", answer[at : at + 10])
        at += 10 + length
        if kind == 1:
            found.append(socket.inet_ntoa(answer[at - 4 : at]))
    return flags & 0xF, found


def test_runs(host):
    service = host.service("coredns")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u coredns --no-pager -n 50")
    assert host.process.get(comm="coredns").user == "coredns"


def test_knows_services():
    assert resolve("kubernetes.default.svc.cluster.local") == (0, ["10.91.0.1"])


def test_says_that_there_is_no_such_service():
    assert resolve("nothing.default.svc.cluster.local") == (3, [])


def test_passes_names_of_the_stack_on():
    assert resolve(f"target.{FACTS['zone']}") == (0, [FACTS["address"]])
