"""What of a stack's configuration does not go together, though each value by itself may be right.

Every sentence names the field, what would follow and what to write instead.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot import etcd
from fleetfoot.errors import FleetfootError
from fleetfoot.images.definition import FORMATS, Definition
from fleetfoot.stack.fields import GROUPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fleetfoot.stack.config import PoolConfig, StackConfig

__all__ = ["conflicts", "namespaces"]

_NODE_LABEL = re.compile(r"[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?")
# Labels that the apiserver lets a node give itself (NodeRestriction).
_RESERVED_DOMAIN = re.compile(r"(^|\.)(kubernetes|k8s)\.io$")
_NODES_OWN = re.compile(r"(node|kubelet)\.kubernetes\.io/|topology\.kubernetes\.io/(zone|region)$")
_LONGEST_POOL_NAME = 53  # a machine is <pool>-<number>, its stand-in <pool>-<number>-surge
# What a host keeps for itself and for QEMU's own needs.
_HOST_RESERVE_MIB = 1024
# Kubernetes' own, beside kube-*, and the sample service's.
_ONLINE_NAMESPACES = ("default", "sample")


def conflicts(config: StackConfig, host_memory_mib: int | None = None) -> list[str]:
    """Return one sentence for each.

    Args:
        config: Typed, and each of its values right by itself.
        host_memory_mib: The host's memory; the running machine's if None.
    """
    found = [*_names(config), *_ranges(config), *_groups(config), *_kept(config)]
    for number, pool in enumerate(config.pools):
        found += [f"fleetfoot:pools[{number}].{told}" for told in _pool(pool)]
    host = _host_memory() if host_memory_mib is None else host_memory_mib
    return [
        *found,
        *_budgets(config),
        *namespaces(config.offline.namespaces, "fleetfoot:offline.namespaces"),
        *_sample(config),
        *_memory(config, host),
    ]


def _names(config: StackConfig) -> list[str]:
    counts = Counter(pool.name for pool in config.pools)
    return [
        f"fleetfoot:pools: {count} pools are named {name!r}, so their machines would share names;"
        " give each its own"
        for name, count in counts.items()
        if count > 1
    ]


def _ranges(config: StackConfig) -> list[str]:
    ranges = {key: ipaddress.ip_network(value) for key, value in config.network}
    keys = list(ranges)
    problems = [
        f"fleetfoot:network.{b}: {ranges[b]} overlaps {a} ({ranges[a]}), so addresses would mean"
        " two things; choose another range"
        for n, a in enumerate(keys)
        for b in keys[n + 1 :]
        if ranges[a].overlaps(ranges[b])
    ]
    machines = sum(pool.count for pool in config.pools)
    room = ranges["cidr"].num_addresses - 3
    if machines > room:
        problems.append(
            f"fleetfoot:network.cidr: {ranges['cidr']} has room for {room} machines, the pools"
            f" want {machines}; choose a larger range or smaller pools"
        )
    return problems


def _groups(config: StackConfig) -> list[str]:
    problems = [
        f"fleetfoot:pools: {members} machines are in the group {group!r}, which survive no more"
        " losses than one machine less would, and one more can block the cluster; make it 1, 3 or 5"
        for group in ("etcd", "etcd_events")
        if (members := sum(pool.count for pool in config.in_group(group))) and members % 2 == 0
    ]
    return problems + [
        f"fleetfoot:pools: no machine is in the group {group!r}, so there would be no cluster;"
        " add it to a pool's groups"
        for group in GROUPS
        if group != "workers" and not any(pool.count for pool in config.in_group(group))
    ]


def _kept(config: StackConfig) -> list[str]:
    """Databases with one member, which would be lost with its machine."""
    return [
        f"fleetfoot:pools: the only member of {group!r} is in pool {pool.name}, whose volumes do"
        f" not have {folder}, so a new image would replace it by one that knows nothing; add it to"
        " volumes (where it runs already, after a backup, docs/operations.md), or have 3 members"
        for group, folder in etcd.DATA.items()
        if sum(pool.count for pool in config.in_group(group)) == 1
        for pool in config.in_group(group)
        if pool.count and etcd.volume_of(folder, pool.volumes) is None
    ]


def _pool(pool: PoolConfig) -> list[str]:
    """What of a pool does not go together, each with its key."""
    problems = []
    worker = "workers" in pool.groups
    if worker and len(pool.groups) > 1:
        others = ", ".join(group for group in pool.groups if group != "workers")
        problems.append(
            f"groups: workers cannot be {others} too: they come and go, and would take it along;"
            " make a pool of its own for that"
        )
    if worker and pool.backend != "qemu":
        problems.append(
            f"backend: workers on {pool.backend} would share the host's kernel and cgroups, where a"
            " kubelet cannot bound its pods; write qemu"
        )
    if pool.volumes and pool.backend != "nspawn":
        problems.append(
            f"volumes: {pool.backend} machines have none, so nothing would be kept; remove it"
        )
    if len(pool.name) > _LONGEST_POOL_NAME:
        problems.append(
            f"name: {pool.name!r} is too long: with a number behind it, it is no DNS label; take up"
            f" to {_LONGEST_POOL_NAME} characters"
        )
    problems += _labels(pool)
    return problems + _image(pool)


def _labels(pool: PoolConfig) -> list[str]:
    problems = []
    for key, value in pool.labels.items():
        domain, _, name = key.rpartition("/")
        if not _NODE_LABEL.fullmatch(name) or (value and not _NODE_LABEL.fullmatch(value)):
            problems.append(
                f"labels: {key}={value} is no label, so kubelets would refuse to start; use"
                " up to 63 letters, digits, hyphens, dots and underscores"
            )
        elif _RESERVED_DOMAIN.search(domain) and not _NODES_OWN.match(key):
            problems.append(
                f"labels: {key} is of Kubernetes' own domain, so the apiserver would refuse the"
                " nodes; use a name of your own"
            )
    return problems


def _image(pool: PoolConfig) -> list[str]:
    try:
        image = Definition.load(pool.image)
    except FleetfootError as told:
        return [f"image: {told}"]
    if FORMATS[image.format] != pool.backend:
        return [
            f"image: {pool.image} is made for {FORMATS[image.format]}, so {pool.backend} could"
            " not start it; choose another"
        ]
    if pool.backend == "qemu" and pool.disk < image.size:
        return [
            f"disk: {pool.disk} MiB is less than the image {pool.image} has ({image.size} MiB), so"
            " it would be cut off; give it more"
        ]
    return []


def _budgets(config: StackConfig) -> list[str]:
    """Bounds of apiservers that their machines do not have: some kernels refuse to set them."""
    together = [
        f"fleetfoot:apiservers: the groups on a machine of pool {pool.name} may use {wanted} MiB"
        f" together, and it has {pool.memory} MiB, so they would starve each other and etcd; lower"
        " a group's memory, or give the pool more"
        for pool in config.pools
        if (wanted := _bounded(config, pool)) > pool.memory
        and all((limits.memory or 0) <= pool.memory for _, limits in config.apiservers)
    ]
    return together + [
        f"fleetfoot:apiservers.{name}.{key}: {wanted:g}{unit} is more than a machine of pool"
        f" {pool.name} has ({has:g}{unit}), so it would bound nothing and hosts with cgroup v1"
        " would refuse it; lower it, leave it out, or give the pool more"
        for name, limits in config.apiservers
        for pool in config.in_group(f"apiserver_{name}")
        for key, wanted, has, unit in (
            ("cpus", limits.cpus, pool.cpus, ""),
            ("memory", limits.memory, pool.memory, " MiB"),
        )
        if wanted is not None and wanted > has
    ]


def _bounded(config: StackConfig, pool: PoolConfig) -> int:
    """MiB that apiservers of a pool's machine may use as far as they have a budget."""
    return sum(limits.memory or 0 for limits in config.apiservers_on(pool).values())


def namespaces(names: Sequence[str], field: str) -> list[str]:
    """Return what speaks against giving namespaces to the offline side, one sentence for each.

    Args:
        names: The namespaces.
        field: Where they are said.
    """
    problems = []
    for name, count in Counter(names).items():
        if name in _ONLINE_NAMESPACES or name.startswith("kube-"):
            problems.append(
                f"{field}: {name!r} belongs to online, whose pods would lose their way to its"
                " apiservers; name another"
            )
        if count > 1:
            problems.append(
                f"{field}: {name!r} is there {count} times, and could be made once; remove it"
            )
    return problems


def _sample(config: StackConfig) -> list[str]:
    if not config.sample.enabled or any(pool.count for pool in config.in_group("workers")):
        return []
    return [
        "fleetfoot:sample.enabled: there is no worker that its pods could run on, so it would never"
        " answer; set it to false, or give a pool of the group workers a count"
    ]


def _memory(config: StackConfig, host: int) -> list[str]:
    wanted = sum(pool.memory * (pool.count + _surge(pool)) for pool in config.pools)
    if wanted + _HOST_RESERVE_MIB <= host:
        return []
    sizes = ", ".join(f"{p.name} {p.count + _surge(p)} x {p.memory} MiB" for p in config.pools)
    return [
        f"fleetfoot:pools: the machines want {wanted} MiB ({sizes}), and the host has {host} MiB of"
        f" which it keeps {_HOST_RESERVE_MIB}, so it would run out; lower count or memory"
    ]


def _surge(pool: PoolConfig) -> int:
    """Extra machines that a roll of the pool may need at a time."""
    return min(pool.count, pool.roll.max_surge) if "workers" in pool.groups else 0


def _host_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemTotal")) // 1024
