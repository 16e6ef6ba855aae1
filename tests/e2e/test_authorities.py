"""Authorities that end, or whose key may have been seen: what the runbook says to do."""

from __future__ import annotations

import shutil
import subprocess
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.e2e.counter import counting
from tests.e2e.stacks import Stack, ask, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.long]

#: As the runbook has it.
PROLONG = (
    "openssl x509 -in ca.crt -signkey ca.key -days 3650 -set_serial 0x$(openssl rand -hex 16)"
    " -out new.crt && mv new.crt ca.crt"
)
AUTHORITIES = ["etcd", "front-proxy", "kubernetes-offline", "kubernetes"]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Two of everything that serves, and a worker."""
    with Stack("e2e-authorities", 71, like="ha") as made:
        made.config["fleetfoot:sample"] = {"enabled": False}
        made.write()
        made.fleetfoot("up")
        yield made


def folder(stack: Stack, authority: str) -> Path:
    return stack.paths.root / "pki" / authority


def certificate(stack: Stack, authority: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder(stack, authority) / "ca.crt").read_bytes())


def key(found: x509.Certificate) -> bytes:
    return found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def all_ready(stack: Stack) -> bool:
    status = stack.status()
    return all(row["ready"] for row in status["apiservers"] + status["nodes"])


def renew_worker(stack: Stack) -> None:
    """Let the worker be made anew, as the runbook says."""
    stack.ssh("worker-1", "poweroff", check=False)
    eventually(lambda: not stack.machine("worker-1")["ready"])
    stack.fleetfoot("up")
    eventually(lambda: all_ready(stack))


def test_prolonged_authorities_turn_nobody_away(stack: Stack) -> None:
    before = {name: certificate(stack, name) for name in AUTHORITIES}
    # It trusts the old certificate, as workers and copies of kubeconfigs do.
    with counting(stack) as online, counting(stack, "offline", "offline") as offline:
        for name in AUTHORITIES:
            subprocess.run(["sh", "-c", PROLONG], cwd=folder(stack, name), check=True)
        stack.play("site.yml")
    assert not online.turned_away + offline.turned_away
    for name, old in before.items():
        new = certificate(stack, name)
        assert new.serial_number != old.serial_number
        assert new.not_valid_after_utc > old.not_valid_after_utc
        assert key(new) == key(old)
    assert all_ready(stack)
    renew_worker(stack)


def test_a_replaced_authority_is_the_only_one_trusted(stack: Stack) -> None:
    stack.kubectl("create", "configmap", "known", "--from-literal=who=before")
    shutil.copytree(folder(stack, "operator"), folder(stack, "stolen"))
    for name in AUTHORITIES:
        shutil.rmtree(folder(stack, name))
    with pytest.raises(AssertionError, match="trusts another authority"):
        stack.play("site.yml")
    for machine in ("control-1", "control-2", "quorum-1"):
        stack.ssh(machine, "systemctl stop etcd etcd-events")
    stack.play("site.yml", "-e", "pki_replace_authorities=true")
    assert stack.get("configmap", "known")["data"] == {"who": "before"}
    renew_worker(stack)
    # Whoever has a certificate of the old one is a stranger now.
    assert ask(stack, "online", "/api", identity="operator")[0] == HTTPStatus.OK
    assert ask(stack, "online", "/api", identity="stolen")[0] == HTTPStatus.UNAUTHORIZED
