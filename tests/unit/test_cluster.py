"""Which front end kubectl is sent to: the kubeconfig's, or the first other one that answers."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from typing import TYPE_CHECKING

import pytest

from fleetfoot import cluster
from fleetfoot.cluster import Cluster
from fleetfoot.paths import StackPaths
from tests.unit.tls import certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIRST, SECOND = "127.0.0.2", "127.0.0.1"


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StackPaths:
    """A stack whose kubeconfig names FIRST, in a checkout of its own."""
    mine = StackPaths("mine", tmp_path)
    monkeypatch.setattr(cluster, "StackPaths", lambda _stack: mine)
    monkeypatch.setattr(cluster, "_FRONT_SECONDS", 0.2)
    for identity in ("online", "offline", "break-glass"):
        mine.kubeconfig_of(identity).parent.mkdir(parents=True, exist_ok=True)
        mine.kubeconfig_of(identity).write_text("{}")
    return mine


def record(paths: StackPaths, *fronts: str) -> None:
    """Record an inventory with load balancers; names are in another order than the pools'."""
    hosts = {f"control-{n}": {"ansible_host": front} for n, front in enumerate(sorted(fronts))}
    inventory = paths.inventory("site")
    inventory.parent.mkdir(parents=True)
    children: dict[str, object] = {"load_balancer": {"hosts": hosts}}
    every = {"hosts": hosts, "children": children, "vars": {"fleetfoot_front": fronts[0]}}
    inventory.write_text(json.dumps({"all": every}))


def answering(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[tuple[str, int]]:
    """Let these front ends answer; return who is asked."""
    asked: list[tuple[str, int]] = []

    def serves(_: Cluster, address: str, port: int) -> bool:
        asked.append((address, port))
        return address in addresses

    monkeypatch.setattr(Cluster, "_serves", serves)
    return asked


def servers(command: list[str]) -> list[str]:
    return [word for word in command if word.startswith("--server")]


def test_nobody_is_asked_where_there_is_one_front_end(
    paths: StackPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch)
    assert servers(Cluster("mine").command("get", "nodes")) == []
    record(paths, FIRST)
    assert servers(Cluster("mine").command("get", "nodes")) == []
    assert asked == []


def test_the_kubeconfigs_own_front_end_is_asked_first_and_is_enough(
    paths: StackPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(paths, FIRST, SECOND)
    asked = answering(monkeypatch, FIRST, SECOND)
    assert servers(Cluster("mine").command("get", "nodes")) == []
    assert asked == [(FIRST, 6443)]


@pytest.mark.parametrize(
    ("identity", "port"), [("online", 6443), ("break-glass", 6443), ("offline", 6444)]
)
def test_another_front_end_stands_in(
    paths: StackPaths, monkeypatch: pytest.MonkeyPatch, identity: str, port: int
) -> None:
    record(paths, FIRST, SECOND)
    answering(monkeypatch, SECOND)
    mine = Cluster("mine", identity)
    assert servers(mine.command("get", "nodes")) == [f"--server=https://{SECOND}:{port}"]
    assert mine.endpoint() == f"https://{SECOND}:{port}"


def test_kubectl_tells_what_is_wrong_where_none_answers(
    paths: StackPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(paths, FIRST, SECOND)
    asked = answering(monkeypatch)
    assert servers(Cluster("mine", patience=0).command("get", "nodes")) == []
    assert asked == [(FIRST, 6443), (SECOND, 6443)]


def test_front_ends_are_asked_again_until_one_answers(
    paths: StackPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(paths, FIRST, SECOND)
    asked: list[str] = []

    def serves(_: Cluster, address: str, _port: int) -> bool:
        asked.append(address)
        return asked == [FIRST, SECOND] * 2

    monkeypatch.setattr(Cluster, "_serves", serves)
    assert servers(Cluster("mine").command("get", "nodes")) == [f"--server=https://{SECOND}:6443"]


@pytest.fixture
def port(paths: StackPaths, tmp_path: Path) -> Iterator[int]:
    """An apiserver on SECOND that shows a certificate which the stack trusts."""
    shown, key = certificate(SECOND)
    authority = paths.pki / "kubernetes" / "ca.crt"
    authority.parent.mkdir(parents=True)
    authority.write_bytes(shown)
    (tmp_path / "pair.pem").write_bytes(shown + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair.pem")
    with socket.create_server((SECOND, 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                    context.wrap_socket(connection, server_side=True).close()
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def test_an_apiserver_behind_a_front_end_answers(paths: StackPaths, port: int) -> None:
    mine = Cluster("mine")
    assert mine._serves(SECOND, port)
    (paths.pki / "kubernetes" / "ca.crt").write_bytes(certificate(SECOND)[0])
    assert not mine._serves(SECOND, port), "an apiserver of somebody else"


def test_a_front_end_that_listens_and_says_nothing_does_not(paths: StackPaths, port: int) -> None:
    with socket.create_server((FIRST, 0)) as frozen:
        assert not Cluster("mine")._serves(FIRST, frozen.getsockname()[1])
    assert not Cluster("mine")._serves(FIRST, port), "nobody listens there"
    (paths.pki / "kubernetes" / "ca.crt").unlink()
    assert not Cluster("mine")._serves(SECOND, port)
