"""The stack as an Ansible inventory: which machine is in which group, and what roles must know.

The same data serves the playbooks that `pulumi up` runs and, as a stack output, the inventory
plug-in behind inventory/fleetfoot.yml.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleetfoot.paths import StackPaths
from fleetfoot.stack.config import GROUPS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fleetfoot.stack.config import StackConfig

__all__ = ["render", "zone"]


def zone(stack: str) -> str:
    """Return the DNS zone of a stack."""
    return f"{stack}.fleetfoot.internal"


def render(
    stack: str, config: StackConfig, addresses: Mapping[str, str], shared: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the inventory in Ansible's YAML layout.

    Args:
        stack: Stack name.
        config: Its configuration.
        addresses: Machine name to IPv4 address.
        shared: Further variables of all hosts.
    """
    paths = StackPaths(stack)
    ssh = f"-o UserKnownHostsFile={paths.known_hosts} -o StrictHostKeyChecking=yes"
    members: dict[str, dict[str, dict[str, Any]]] = {
        group: {
            name: {}
            for pool in config.in_group(group)
            for name in pool.machine_names
            if name in addresses
        }
        for group in GROUPS
    }
    hosts = {name: {"ansible_host": address} for name, address in sorted(addresses.items())}
    return {
        "all": {
            "hosts": hosts,
            "children": {group: {"hosts": hosts} for group, hosts in members.items()},
            "vars": {
                "ansible_user": "root",
                "ansible_ssh_private_key_file": str(paths.ssh_key),
                "ansible_ssh_common_args": ssh,
                "ansible_python_interpreter": "/usr/bin/python3",
                **shared,
            },
        }
    }
