"""Nodes of a stack's cluster, through kubectl and the operator's kubeconfig."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fleetfoot import artifacts
from fleetfoot.errors import FleetfootError
from fleetfoot.paths import StackPaths
from fleetfoot.shell import run, succeeds

__all__ = ["Cluster", "is_ready"]


@dataclass(frozen=True)
class Cluster:
    """The cluster of one stack.

    Attributes:
        stack: The stack's name.
    """

    stack: str

    @property
    def exists(self) -> bool:
        """Whether an operator's kubeconfig is there."""
        return StackPaths(self.stack).kubeconfig.exists()

    def command(self, *arguments: str) -> list[str]:
        """Return a kubectl command line.

        Raises:
            FleetfootError: There is no cluster yet.
        """
        kubeconfig = StackPaths(self.stack).kubeconfig
        if not kubeconfig.exists():
            raise FleetfootError(
                f"the stack {self.stack!r} has no cluster yet",
                f"{kubeconfig.name} is made with it",
                "run `make up`",
            )
        return [str(artifacts.directory() / "kubectl"), f"--kubeconfig={kubeconfig}", *arguments]

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

    def drain(self, node: str, timeout: int = 120) -> None:
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
