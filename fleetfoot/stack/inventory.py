"""The stack as an Ansible inventory: which machine is in which group, and what roles must know.

The same data serves the playbooks that `pulumi up` runs and, as a stack output, the inventory
plug-in behind inventory/fleetfoot.yml.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleetfoot import artifacts
from fleetfoot.machines.spec import IDLE
from fleetfoot.paths import StackPaths
from fleetfoot.stack.fields import GROUPS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from fleetfoot.stack.config import ApiserversConfig, PoolConfig, StackConfig

__all__ = [
    "API_PORTS",
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
#: Port of each apiserver group's front end.
API_PORTS = {"online": 6443, "offline": 6444}
# Group to the names by which the stack knows what the group serves.
_SERVICE_NAMES = {
    "load_balancer": [f"api-{group}" for group in API_PORTS],
    "registry": ["registry"],
}
# Second services of a machine stand on aliases of it: a host has one value a variable.
_ALIASES = {"apiserver_offline": "offline", "etcd_events": "events"}
_GOAWAY_CHANCE = 0.001  # where Kubernetes recommends to start
# Of an apiserver's budget, or of half its machine; the rest is for what Go does not count.
_TARGET_PERCENT = 90
_PARENTS = {"kube_apiserver": ["apiserver_online", "apiserver_offline"]}


def zone(stack: str) -> str:
    """Return the DNS zone of a stack."""
    return f"{stack}.fleetfoot.internal"


def service_names(groups: Collection[str]) -> list[str]:
    """Return the names, without the zone, that resolve to a machine of these groups."""
    return [name for group, names in _SERVICE_NAMES.items() if group in groups for name in names]


def api_url(stack: str, group: str = "online") -> str:
    """Return where machines of the stack reach a group of apiservers."""
    return f"https://api-{group}.{zone(stack)}:{API_PORTS[group]}"


def registry_address(stack: str) -> str:
    """Return host and port of the stack's registry, as image references have it."""
    return f"{_SERVICE_NAMES['registry'][0]}.{zone(stack)}:5000"


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
    hosts: dict[str, dict[str, Any]] = {}
    members: dict[str, dict[str, Any]] = {group: {"hosts": {}} for group in GROUPS}
    halves = {pool.name: _half(config, pool) for pool in config.pools}
    for pool in config.pools:
        for name in (name for name in pool.machine_names if name in addresses):
            facts = {"ansible_host": addresses[name], "fleetfoot_pool": pool.name}
            hosts[name] = facts
            for group in pool.groups:
                host = f"{name}-{_ALIASES[group]}" if group in _ALIASES else name
                hosts[host] = facts
                members[group]["hosts"][host] = {}
    for name, limits in config.apiservers:
        side = members[f"apiserver_{name}"]
        side["vars"] = _limits(limits, len(side["hosts"]))
        for host in side["hosts"]:
            memory = limits.memory or halves[hosts[host]["fleetfoot_pool"]]
            target = memory * _TARGET_PERCENT // 100
            side["hosts"][host] = {"kube_apiserver_memory_target": f"{target}MiB"}
    members["etcd"]["vars"] = {"etcd_quota_bytes": config.etcd.quota << 20}
    members["etcd_events"]["vars"] = {"etcd_quota_bytes": config.etcd.events_quota << 20}
    for parent, children in _PARENTS.items():
        members[parent] = {"children": {child: members.pop(child) for child in children}}
    # Machines of pools are deleted; on others it stands for what they do no longer.
    members["retired"] = {"hosts": {}}
    return {
        "all": {
            "hosts": hosts,
            "children": members,
            "vars": {
                "ansible_user": "root",
                "ansible_ssh_private_key_file": str(paths.ssh_key),
                "ansible_ssh_common_args": ssh,
                "ansible_python_interpreter": "/usr/bin/python3",
                # They stand on this host: packing programs takes longer than sending them.
                "mitogen_ssh_compression": False,
                "fleetfoot_stack": stack,
                "fleetfoot_zone": zone(stack),
                "fleetfoot_resolver": gateway,
                "fleetfoot_offline_namespace": config.offline.namespaces[0],
                "fleetfoot_pod_cidr": config.network.pods,
                "fleetfoot_service_cidr": config.network.services,
                "fleetfoot_state_dir": str(paths.root),
                "fleetfoot_artifacts_dir": str(artifacts.directory()),
                "load_balancer_frontends": _frontends(stack, config),
                **_front(config, addresses),
            },
        }
    }


def _half(config: StackConfig, pool: PoolConfig) -> int:
    """MiB of a pool's machine for each of its apiservers that has no budget: half of it for all."""
    unbounded = sum(limits.memory is None for limits in config.apiservers_on(pool).values())
    return pool.memory // 2 // max(1, unbounded)


def _limits(limits: ApiserversConfig, instances: int) -> dict[str, Any]:
    """What an instance of a group of so many may use, as variables of role kube_apiserver."""
    goaway = limits.goaway_chance
    if goaway is None:
        # Who is alone has nobody to send clients to.
        goaway = _GOAWAY_CHANCE if instances > 1 else 0
    wanted: dict[str, Any] = {
        "kube_apiserver_gc_percent": limits.gc_percent,
        "kube_apiserver_audit_reads": limits.audit == "all",
        "kube_apiserver_goaway_chance": goaway,
        "kube_apiserver_watch_cache_sizes": limits.watch_cache,
        "kube_apiserver_max_requests": limits.max_requests,
        "kube_apiserver_max_mutating_requests": limits.max_mutating_requests,
        "kube_apiserver_cpu_weight": "idle" if limits.weight == IDLE else str(limits.weight),
    }
    if limits.cpus is not None:
        wanted["kube_apiserver_cpu_quota"] = f"{limits.cpus:.0%}"
    if limits.memory is not None:
        wanted["kube_apiserver_memory_max"] = f"{limits.memory}M"
    return wanted


def _front(config: StackConfig, addresses: Mapping[str, str]) -> dict[str, str]:
    """How the host reaches the apiservers: by address, for it does not ask the stack's DNS."""
    for pool in config.in_group("load_balancer"):
        for name in pool.machine_names:
            if name in addresses:
                return {"fleetfoot_front": addresses[name]}
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
