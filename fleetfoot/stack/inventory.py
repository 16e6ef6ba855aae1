"""The stack as an Ansible inventory: which machine is in which group, and what roles must know.

The same data serves the playbooks that `pulumi up` runs and, as a stack output, the inventory
plug-in behind inventory/fleetfoot.yml.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleetfoot import artifacts
from fleetfoot.paths import StackPaths
from fleetfoot.stack.config import GROUPS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from fleetfoot.stack.config import StackConfig

__all__ = [
    "SAMPLE_NODE_PORT",
    "SAMPLE_PORT",
    "api_url",
    "registry_address",
    "render",
    "service_names",
    "zone",
]

#: The sample service's port on the load balancer, and on every worker.
SAMPLE_PORT, SAMPLE_NODE_PORT = 8080, 30080
# Group to the name by which the stack knows what the group serves.
_SERVICE_NAMES = {"load_balancer": "api-online", "registry": "registry"}


def zone(stack: str) -> str:
    """Return the DNS zone of a stack."""
    return f"{stack}.fleetfoot.internal"


def service_names(groups: Collection[str]) -> list[str]:
    """Return the names, without the zone, that resolve to a machine of these groups."""
    return [name for group, name in _SERVICE_NAMES.items() if group in groups]


def api_url(stack: str) -> str:
    """Return where machines of the stack reach the apiservers."""
    return f"https://{_SERVICE_NAMES['load_balancer']}.{zone(stack)}:6443"


def registry_address(stack: str) -> str:
    """Return host and port of the stack's registry, as image references have it."""
    return f"{_SERVICE_NAMES['registry']}.{zone(stack)}:5000"


def render(
    stack: str, config: StackConfig, addresses: Mapping[str, str], gateway: str
) -> dict[str, Any]:
    """Return the inventory in Ansible's YAML layout.

    Facts of the stack are `fleetfoot_*`; playbooks/group_vars/all.yml makes role variables of them.

    Args:
        stack: Stack name.
        config: Its configuration.
        addresses: Machine name to IPv4 address.
        gateway: Address of the stack's router and name server.
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
    hosts = {
        name: {"ansible_host": addresses[name], "fleetfoot_pool": pool.name}
        for pool in config.pools
        for name in pool.machine_names
        if name in addresses
    }
    return {
        "all": {
            "hosts": hosts,
            "children": {group: {"hosts": hosts} for group, hosts in members.items()},
            "vars": {
                "ansible_user": "root",
                "ansible_ssh_private_key_file": str(paths.ssh_key),
                "ansible_ssh_common_args": ssh,
                "ansible_python_interpreter": "/usr/bin/python3",
                "fleetfoot_stack": stack,
                "fleetfoot_zone": zone(stack),
                "fleetfoot_resolver": gateway,
                "fleetfoot_pod_cidr": config.network.pods,
                "fleetfoot_service_cidr": config.network.services,
                "fleetfoot_state_dir": str(paths.root),
                "fleetfoot_artifacts_dir": str(artifacts.directory()),
                "load_balancer_frontends": _frontends(stack, config),
                **_operator(config, addresses),
            },
        }
    }


def _operator(config: StackConfig, addresses: Mapping[str, str]) -> dict[str, str]:
    """How the host reaches the apiservers: by address, for it does not ask the stack's DNS."""
    for pool in config.in_group("load_balancer"):
        for name in pool.machine_names:
            if name in addresses:
                return {"kube_bootstrap_operator_server": f"https://{addresses[name]}:6443"}
    return {}


def _frontends(stack: str, config: StackConfig) -> list[dict[str, Any]]:
    """Services that the load balancer shows: any worker serves, found by its pool's name."""
    if not config.sample.enabled:
        return []
    return [
        {
            "name": f"sample-{pool.name}",
            "port": SAMPLE_PORT,
            "mode": "http",
            "check_path": "/healthz",
            "template": {"fqdn": f"{pool.name}.pool.{zone(stack)}", "port": SAMPLE_NODE_PORT},
        }
        for pool in config.in_group("workers")[:1]
    ]
