"""A control plane without nodes, for tests: etcd, kube-apiserver, kube-controller-manager."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

TOKEN = "token-of-the-test"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ControlPlane:
    """Its address and a minimal client of its own, so that tests do not trust what they test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.kubeconfig: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": f"https://127.0.0.1:{self.port}",
                    },
                }
            ],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }

    def call(self, method: str, path: str, body: Any = None, kind: str = "json") -> Any:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        request = urllib.request.Request(
            f"https://127.0.0.1:{self.port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": f"application/{kind}"},
        )
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            text = answer.read()
            return json.loads(text) if text.startswith(b"{") else text.decode()

    def get(self, path: str) -> Any:
        """An object, or None."""
        try:
            return self.call("GET", path)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def set_status(self, path: str, status: dict[str, Any]) -> None:
        """Does what a controller or kubelet would."""
        self.call("PATCH", f"{path}/status", {"status": status}, "merge-patch+json")


def until(condition: Callable[[], Any], what: str, alive: Callable[[], bool]) -> Any:
    deadline = time.monotonic() + 90
    while True:
        with contextlib.suppress(OSError, urllib.error.URLError):
            if found := condition():
                return found
        assert alive(), f"a process ended before {what}"
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def run(folder: Path, programs: dict[str, str]) -> Iterator[ControlPlane]:
    """Starts all and ends all."""
    plane = ControlPlane(folder)
    client, peer = free_port(), free_port()
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (folder / "sa.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    (folder / "tokens").write_text(f"{TOKEN},admin,admin,system:masters\n")
    processes: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str) -> None:
        log = (folder / f"{name}.log").open("wb")
        processes.append(
            subprocess.Popen([programs[name], *arguments], stdout=log, stderr=log, cwd=folder)
        )
        log.close()

    def alive() -> bool:
        return all(process.poll() is None for process in processes)

    try:
        start(
            "etcd",
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls=http://127.0.0.1:{client}",
            f"--advertise-client-urls=http://127.0.0.1:{client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        )
        start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{client}",
            f"--secure-port={plane.port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={folder}/certs",
            "--service-account-issuer=https://test",
            f"--service-account-signing-key-file={folder}/sa.key",
            f"--service-account-key-file={folder}/sa.key",
            f"--token-auth-file={folder}/tokens",
            "--authorization-mode=AlwaysAllow",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--disable-admission-plugins=ServiceAccount",
        )
        until(lambda: plane.call("GET", "/readyz") == "ok", "the apiserver is ready", alive)
        authority = base64.b64encode((folder / "certs" / "apiserver.crt").read_bytes()).decode()
        plane.kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"] = authority
        (folder / "kubeconfig").write_text(json.dumps(plane.kubeconfig))
        start(
            "kube-controller-manager",
            f"--kubeconfig={folder}/kubeconfig",
            f"--service-account-private-key-file={folder}/sa.key",
            "--leader-elect=false",
            "--secure-port=0",
            "--controllers=deployment-controller,replicaset-controller,namespace-controller,"
            "garbage-collector-controller,endpointslice-controller,job-controller",
        )
        until(lambda: plane.get("/api/v1/namespaces/default"), "there is a namespace", alive)
        yield plane
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()
