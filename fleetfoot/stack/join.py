"""What a machine is given at boot so that it is a node without anyone logging in.

Names of the credentials and the files they become: images/README.md.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import yaml

from fleetfoot.kubeconfig import kubeconfig
from fleetfoot.paths import StackPaths
from fleetfoot.pki import authority_certificate, kubelet_client
from fleetfoot.stack.inventory import api_url, registry_address

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["node_credentials", "node_inputs"]

# A resolver list may have three entries (resolv.conf(5)).
_MAX_RESOLVERS = 3
_CURRENT_CERTIFICATE = "/var/lib/kubelet/pki/kubelet-client-current.pem"


def node_inputs(stack: str, resolvers: Sequence[Any], pods: str) -> dict[str, Any]:
    """Return how machines of a stack join its cluster; labels and taints come from their pool.

    Args:
        stack: Stack name.
        resolvers: Addresses of the cluster's DNS.
        pods: Address range of the pods.
    """
    return {
        "api": api_url(stack),
        "dns": list(resolvers[:_MAX_RESOLVERS]),
        "pods": pods,
        "registry": registry_address(stack),
    }


def node_credentials(stack: str, name: str, node: Mapping[str, Any]) -> dict[str, str]:
    """Return the credentials of a node, name to content.

    Args:
        stack: Stack name.
        name: Node name.
        node: What `node_inputs` returned, and `labels` and `taints` (`key=value:Effect`).
    """
    paths = StackPaths(stack)
    authority = authority_certificate(paths.pki, "kubernetes")
    registry = str(node["registry"])
    return {
        "fleetfoot.cluster-ca": authority,
        "fleetfoot.kubelet-client": kubelet_client(paths.pki, name),
        "fleetfoot.kubelet-kubeconfig": kubeconfig(
            str(node["api"]), "/etc/kubernetes/pki/ca.crt", _CURRENT_CERTIFICATE, "node"
        ),
        "fleetfoot.kubelet-config": _kubelet_config(node),
        "fleetfoot.kubelet-env": _kubelet_environment(node),
        "fleetfoot.pod-network": (
            f"define pods = {node['pods']}\ndefine direct = {{ 224.0.0.0/4 }}\n"
        ),
        "fleetfoot.routing-key": _routing_key(paths.root / "secrets" / "routing.key"),
        "fleetfoot.registry-hosts": _registry_hosts(stack, registry),
        "fleetfoot.registry-ca": authority,
        "tmpfiles.extra": _registry_files(registry),
    }


def _kubelet_config(node: Mapping[str, Any]) -> str:
    taints = []
    for text in node.get("taints") or ():
        key_value, _, effect = str(text).rpartition(":")
        key, _, value = key_value.partition("=")
        taints.append({"key": key, "value": value, "effect": effect})
    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "clusterDNS": list(node["dns"]),
            "registerWithTaints": taints,
        }
    )


def _kubelet_environment(node: Mapping[str, Any]) -> str:
    """Labels go by flag: KubeletConfiguration has no field for them."""
    labels = ",".join(f"{key}={value}" for key, value in sorted(node.get("labels", {}).items()))
    return f'KUBELET_MACHINE_FLAGS="{f"--node-labels={labels}" if labels else ""}"\n'


def _routing_key(path: Path) -> str:
    """Return the file that role routing writes on machines without such a credential."""
    return f'password "{path.read_text().strip()}" {{ algorithm hmac sha256; }};\n'


def _registry_hosts(stack: str, registry: str) -> str:
    """Return hosts.toml of containerd with the pull credential as a header."""
    password = (StackPaths(stack).root / "secrets" / "registry" / "puller").read_text().strip()
    basic = base64.b64encode(f"puller:{password}".encode()).decode()
    return f"""\
server = "https://{registry}"

[host."https://{registry}"]
  capabilities = ["pull", "resolve"]
  ca = "/etc/containerd/certs.d/{registry}/ca.crt"
  [host."https://{registry}".header]
    Authorization = "Basic {basic}"
"""


def _registry_files(registry: str) -> str:
    folder = f"/etc/containerd/certs.d/{registry}"
    return (
        f"d  {folder}            0700 root root -\n"
        f"f^ {folder}/hosts.toml 0600 root root - fleetfoot.registry-hosts\n"
        f"f^ {folder}/ca.crt     0644 root root - fleetfoot.registry-ca\n"
        # Its lazy forms are believed.
        f"f  {folder}/lazy       0600 root root -\n"
    )
