"""Nodes of a stack's cluster, through kubectl and the operator's kubeconfig.

A kubeconfig names one front end. Where a stack has several, the first that answers is asked.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetfoot import artifacts
from fleetfoot.errors import FleetfootError
from fleetfoot.paths import StackPaths
from fleetfoot.shell import run, succeeds
from fleetfoot.stack.inventory import API_PORTS

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Cluster", "is_ready"]

_FRONT_SECONDS = 1.0  # an apiserver behind a front end that lives says who it is within
_PAUSE_SECONDS = 0.2  # before front ends are tried again


@dataclass(frozen=True)
class Cluster:
    """The cluster of one stack.

    Attributes:
        stack: The stack's name.
        group: The group of apiservers to ask (`online`, `offline`), or `break-glass`.
        patience: Seconds to try several front ends again while none serves: when a machine dies,
            the others' load balancers go on sending to it until their checks notice.
    """

    stack: str
    group: str = "online"
    patience: float = 10.0

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig that it is asked with."""
        return StackPaths(self.stack).kubeconfig_of(self.group)

    @property
    def exists(self) -> bool:
        """Whether a kubeconfig of the group is there."""
        return self.kubeconfig.exists()

    def command(self, *arguments: str) -> list[str]:
        """Return a kubectl command line.

        Raises:
            FleetfootError: There is no cluster yet.
        """
        kubeconfig = self.kubeconfig
        if not kubeconfig.exists():
            raise FleetfootError(
                f"the stack {self.stack!r} has no cluster yet",
                f"{kubeconfig.name} is made with it",
                "run `make up`",
            )
        server = self._standing_in()
        return [
            str(artifacts.directory() / "kubectl"),
            f"--kubeconfig={kubeconfig}",
            *([f"--server={server}"] if server else []),
            *arguments,
        ]

    def endpoint(self) -> str:
        """Return the URL that it is asked at right now."""
        path = "jsonpath={.clusters[0].cluster.server}"
        return self._standing_in() or self.kubectl("config", "view", "-o", path)

    def _standing_in(self) -> str:
        """Return the URL to ask instead of the kubeconfig's, if that one's front end is silent."""
        first, *others = self._fronts() or [""]
        if not others:
            return ""
        port = API_PORTS.get(self.group, API_PORTS["online"])
        until = time.monotonic() + self.patience
        while True:
            if self._serves(first, port):
                return ""
            for front in others:
                if self._serves(front, port):
                    return f"https://{front}:{port}"
            if time.monotonic() >= until:
                return ""
            time.sleep(_PAUSE_SECONDS)

    def _fronts(self) -> list[str]:
        """Addresses of the load balancers, the kubeconfig's first, as the stack was last made."""
        every = StackPaths(self.stack).control_plane()
        if every is None:
            return []
        named = every["vars"].get("fleetfoot_front")
        members = every["children"].get("load_balancer", {}).get("hosts", {})
        addresses = [every["hosts"][name]["ansible_host"] for name in members]
        return sorted(addresses, key=lambda address: address != named)

    def _serves(self, address: str, port: int) -> bool:
        """Whether an apiserver shows its certificate through this front end."""
        authority = StackPaths(self.stack).pki / "kubernetes" / "ca.crt"
        try:
            context = ssl.create_default_context(cafile=str(authority))
            with (
                socket.create_connection((address, port), _FRONT_SECONDS) as connection,
                context.wrap_socket(connection, server_hostname=address),
            ):
                return True
        except OSError:  # TLS's own errors are of that kind, too
            return False

    def kubectl(self, *arguments: str, timeout: float = 60) -> str:
        """Run kubectl and return its output."""
        return run(self.command(*arguments), timeout=timeout)

    def get(self, *what: str) -> Any:
        """Return what `kubectl get ... -o json` gives."""
        return json.loads(self.kubectl("get", *what, "-o", "json"))

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the Node objects by name."""
        return {node["metadata"]["name"]: node for node in self.get("nodes")["items"]}

    def answers(self) -> bool:
        """Whether there is a cluster whose apiserver says that it is ready."""
        if not self.exists:
            return False
        return succeeds(self.command("get", "--raw=/readyz", "--request-timeout=10s"))

    def wait_ready(self, node: str, timeout: int = 240) -> None:
        """Wait until a node is there and Ready."""
        limit = f"--timeout={timeout}s"
        self.kubectl("wait", "--for=create", f"node/{node}", limit, timeout=timeout + 30)
        self.kubectl("wait", "--for=condition=Ready", f"node/{node}", limit, timeout=timeout + 30)

    def drain(self, node: str, timeout: int = 300) -> None:
        """Cordon a node and evict its pods, as far as disruption budgets allow.

        Raises:
            FleetfootError: Pods were left after `timeout` seconds; the node is cordoned.
        """
        if node not in self.nodes():
            return
        options = ["--ignore-daemonsets", "--delete-emptydir-data", "--force"]
        limit = f"--timeout={timeout}s"
        self.kubectl("drain", node, *options, limit, timeout=timeout + 30)

    def uncordon(self, node: str) -> None:
        """Let a node take pods again."""
        self.kubectl("uncordon", node)

    def forget(self, node: str) -> None:
        """Remove a Node object."""
        self.kubectl("delete", "node", node, "--ignore-not-found")


def is_ready(node: dict[str, Any]) -> bool:
    """Whether a Node object says that it is Ready."""
    conditions = node.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
