"""The stack's configuration, typed and checked before anything happens.

Source: the `fleetfoot:` keys of `Pulumi.<stack>.yaml`. Every refusal names the field, what would
follow and what to write instead.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from fleetfoot.errors import FleetfootError
from fleetfoot.images.definition import FORMATS, Definition
from fleetfoot.machines.spec import IDLE
from fleetfoot.stack.sides import OFFLINE_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "GROUPS",
    "ApiserversConfig",
    "EtcdConfig",
    "GroupsConfig",
    "NetworkConfig",
    "PoolConfig",
    "SampleConfig",
    "StackConfig",
    "WorkConfig",
    "load",
]

GROUPS = (
    "etcd",
    "etcd_events",
    "apiserver_online",
    "apiserver_offline",
    "kube_control",
    "dns",
    "registry",
    "load_balancer",
    "workers",
)
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NODE_LABEL = re.compile(r"[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?")
# Labels that the apiserver lets a node give itself (NodeRestriction).
_RESERVED_DOMAIN = re.compile(r"(^|\.)(kubernetes|k8s)\.io$")
_NODES_OWN = re.compile(r"(node|kubelet)\.kubernetes\.io/|topology\.kubernetes\.io/(zone|region)$")
_LONGEST_POOL_NAME = 53  # a machine is <pool>-<number>, its stand-in <pool>-<number>-surge
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(MiB|GiB)")
_TAINT = re.compile(r"[^=:\s]+(=[^=:\s]*)?:(NoSchedule|PreferNoSchedule|NoExecute)")
_MIB = {"MiB": 1, "GiB": 1024}
# What a host keeps for itself and for QEMU's own needs.
_HOST_RESERVE_MIB = 1024
# Kubernetes' own, beside kube-*, and the sample service's.
_ONLINE_NAMESPACES = ("default", "sample")
_WEIGHT, _MOST_WEIGHT, _IDLE = 100, 10_000, "idle"  # systemd's own
_RESOURCE = re.compile(r"[a-z]+(\.[a-z0-9]([-.a-z0-9]*[a-z0-9])?)?")


def _refuse(message: str) -> PydanticCustomError:
    return PydanticCustomError("fleetfoot", "{message}", {"message": message})


def _dns_label(value: str) -> str:
    if not _LABEL.fullmatch(value):
        raise _refuse(
            f"{value!r} is no DNS label, so no machine could have it in its name; use lower-case"
            " letters, digits and inner hyphens, at most 63"
        )
    return value


def _size(value: object) -> int:
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if not found:
        raise _refuse(
            f"{value!r} is no size, so nothing could be allotted; write a number with its unit,"
            " such as 512MiB or 2GiB"
        )
    return int(float(found[1]) * _MIB[found[2]])


def _subnet(value: str) -> str:
    try:
        return str(ipaddress.IPv4Network(value))
    except ValueError as wrong:
        raise _refuse(
            f"{value!r} is no IPv4 range ({wrong}), so no address could be given; write one such"
            " as 10.89.0.0/24"
        ) from wrong


def _taint(value: str) -> str:
    if not _TAINT.fullmatch(value):
        raise _refuse(
            f"{value!r} is no taint, so kubelets would refuse to start; write key=value:Effect with"
            " NoSchedule, PreferNoSchedule or NoExecute"
        )
    return value


def _resource(value: str) -> str:
    if not _RESOURCE.fullmatch(value):
        raise _refuse(
            f"{value!r} is no resource, so no apiserver would start with it; write its plural, and"
            " its API group after a dot, such as pods or jobs.batch"
        )
    return value


def _weight(value: object) -> int:
    if value == _IDLE:
        return IDLE
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_WEIGHT:
        raise _refuse(
            f"{value!r} is no weight, so CPU time could not be shared by it; write a whole number"
            f" from 1 to {_MOST_WEIGHT}, or idle"
        )
    return value


Label = Annotated[str, AfterValidator(_dns_label)]
Weight = Annotated[int, BeforeValidator(_weight)]
Size = Annotated[int, BeforeValidator(_size)]
Resource = Annotated[str, AfterValidator(_resource)]
Subnet = Annotated[str, AfterValidator(_subnet)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NetworkConfig(_Strict):
    """Address ranges; none may overlap another or one that the host uses.

    Attributes:
        cidr: Machines.
        uplink: A /30 between host and stack.
        pods: Pods; each node gets a /24 of it.
        services: Kubernetes Services.
    """

    cidr: Subnet = "10.89.0.0/24"
    uplink: Subnet = "10.89.255.0/30"
    pods: Subnet = "10.90.0.0/16"
    services: Subnet = "10.91.0.0/16"


class RollConfig(_Strict):
    """How a changed image, size or boot setting goes through a pool.

    Attributes:
        max_surge: Machines that may be added for the time of the roll.
        max_unavailable: Machines that may be out of service at once.
    """

    max_surge: Annotated[int, Field(ge=0, le=100)] = 0
    max_unavailable: Annotated[int, Field(ge=0, le=100)] = 1


class PoolConfig(_Strict):
    """Machines of one kind.

    Attributes:
        name: Pool name; machines are `<name>-1`, `<name>-2`, ...
        backend: Where its machines come from.
        image: A folder under images/.
        count: Number of machines.
        cpus: CPUs of a machine.
        memory: MiB of a machine.
        disk: MiB of writable space of a machine (qemu).
        groups: Inventory groups of its machines.
        labels: Node labels.
        taints: Node taints, `key=value:Effect`.
        volumes: Folders whose contents outlive a machine (nspawn).
        roll: How changes go through the pool.
    """

    name: Label
    backend: Literal["qemu", "nspawn"]
    image: Label
    count: Annotated[int, Field(ge=0, le=200)]
    cpus: Annotated[float, Field(gt=0, le=256)] = 2
    memory: Annotated[Size, Field(ge=256, le=4 * 1024 * 1024)]
    disk: Annotated[Size, Field(ge=1024, le=64 * 1024 * 1024)] = 10 * 1024
    groups: tuple[Literal[GROUPS], ...] = ()  # type: ignore[valid-type]  # the tuple above
    labels: dict[str, str] = {}
    taints: tuple[Annotated[str, AfterValidator(_taint)], ...] = ()
    volumes: tuple[str, ...] = ()
    roll: RollConfig = RollConfig()

    @property
    def machine_names(self) -> list[str]:
        """Names of the pool's machines."""
        return [f"{self.name}-{n}" for n in range(1, self.count + 1)]


class SampleConfig(_Strict):
    """The sample service.

    Attributes:
        enabled: Whether it is deployed.
        replicas: Its pods.
    """

    enabled: bool = True
    replicas: Annotated[int, Field(ge=1, le=1000)] = 2


class ApiserversConfig(_Strict):
    """What each instance of a group of apiservers may use.

    Attributes:
        max_requests: Reads in flight.
        max_mutating_requests: Writes in flight.
        cpus: CPUs; None means no bound but the machine's.
        weight: Share of CPU time when the machine has too little; its other services have 100.
            `idle` (0 here) is what they leave.
        memory: MiB; None means no bound but the machine's.
        gc_percent: By how much its heap grows, in percent of what is in use, before it collects
            garbage, unless it comes near its memory before.
        watch_cache: Resource to the size of its watch cache; 0 means none. Other sizes are the
            apiserver's own choice.
        goaway_chance: Part of the requests after which a client connects anew, and so may come to
            another instance. None means 0.001, or 0 where the group has one instance.
        audit: Whether the audit log tells of `changes`, or of `all` requests.
    """

    max_requests: Annotated[int, Field(ge=10, le=10_000)] = 400
    max_mutating_requests: Annotated[int, Field(ge=5, le=10_000)] = 200
    cpus: Annotated[float, Field(gt=0, le=256)] | None = None
    weight: Weight = _WEIGHT
    memory: Annotated[Size, Field(ge=512, le=4 * 1024 * 1024)] | None = None
    gc_percent: Annotated[int, Field(ge=20, le=10_000)] = 800
    watch_cache: dict[Resource, Annotated[int, Field(ge=0, le=1_000_000)]] = {}
    goaway_chance: Annotated[float, Field(ge=0, le=0.02)] | None = None
    audit: Literal["changes", "all"] = "changes"


class OfflineConfig(ApiserversConfig):
    """The same for offline, which has less where nothing is said.

    What it watches, how clients move and what is audited is as in online: its clients are the ones
    who list and watch most, and what they change belongs in a log as much as what others do.
    """

    max_requests: Annotated[int, Field(ge=10, le=10_000)] = 100
    max_mutating_requests: Annotated[int, Field(ge=5, le=10_000)] = 50
    weight: Weight = IDLE
    gc_percent: Annotated[int, Field(ge=20, le=10_000)] = 100


class GroupsConfig(_Strict):
    """Groups of apiservers over one etcd.

    Attributes:
        online: Nodes, controllers, operators and online services.
        offline: Batch work; it queues here, so that online does not feel it.
    """

    online: ApiserversConfig = ApiserversConfig()
    offline: OfflineConfig = OfflineConfig()


class EtcdConfig(_Strict):
    """Databases of the control plane.

    Attributes:
        quota: MiB at which the database refuses writes; at most what etcd's authors advise.
        events_quota: The same for that of Events.
    """

    quota: Annotated[Size, Field(ge=64, le=8 * 1024)] = 2 * 1024
    events_quota: Annotated[Size, Field(ge=64, le=8 * 1024)] = 2 * 1024


class WorkConfig(_Strict):
    """Where the offline side works.

    Attributes:
        namespaces: Its namespaces; the stack makes them.
    """

    namespaces: Annotated[tuple[Label, ...], Field(min_length=1)] = (OFFLINE_NAMESPACE,)


class StackConfig(_Strict):
    """All `fleetfoot:` keys of a stack."""

    network: NetworkConfig = NetworkConfig()
    pools: Annotated[tuple[PoolConfig, ...], Field(min_length=1)]
    apiservers: GroupsConfig = GroupsConfig()
    etcd: EtcdConfig = EtcdConfig()
    offline: WorkConfig = WorkConfig()
    sample: SampleConfig = SampleConfig()

    def in_group(self, group: str) -> list[PoolConfig]:
        """Return the pools whose machines are in an inventory group."""
        return [pool for pool in self.pools if group in pool.groups]

    def budgets(self, pool: PoolConfig) -> list[dict[str, Any]]:
        """Return what apiservers on a pool's machines may use, as fields of Budget."""
        return [
            {
                "name": f"kube-apiserver-{name}",
                "cpus": limits.cpus or 0,
                "memory": limits.memory or 0,
                "weight": limits.weight,
            }
            for name, limits in self.apiservers
            if f"apiserver_{name}" in pool.groups
            and (limits.cpus or limits.memory or limits.weight != _WEIGHT)
        ]


_KEYS = sorted({key for model in _Strict.__subclasses__() for key in model.model_fields})


def load(
    values: Mapping[str, Any], host_memory_mib: int | None = None, stack: str = "<stack>"
) -> StackConfig:
    """Return the typed configuration.

    Args:
        values: The stack's keys without the `fleetfoot:` prefix, as plain data.
        host_memory_mib: The host's memory; the running machine's if None.
        stack: The stack's name, by which errors call the file.

    Raises:
        FleetfootError: Something in it is wrong; all reasons together.
    """
    try:
        # JSON mode: a list is a tuple, yet "2" is no number.
        config = StackConfig.model_validate_json(json.dumps(values))
    except ValidationError as wrong:
        raise _told([_sentence(error) for error in wrong.errors()], stack) from wrong
    problems = [*_names(config), *_ranges(config), *_groups(config)]
    for number, pool in enumerate(config.pools):
        problems += [f"fleetfoot:pools[{number}].{told}" for told in _pool(pool)]
    problems += _budgets(config)
    problems += _namespaces(config)
    problems += _sample(config)
    problems += _memory(config, _host_memory() if host_memory_mib is None else host_memory_mib)
    if problems:
        raise _told(problems, stack)
    return config


def _told(problems: list[str], stack: str) -> FleetfootError:
    listed = "".join(f"\n  - {problem}" for problem in problems)
    return FleetfootError(
        f"the stack's configuration cannot be used:{listed}\nNothing was changed",
        fix=f"mend Pulumi.{stack}.yaml (docs/configuration.md has every key) and run it again",
    )


def _sentence(error: Any) -> str:
    where = "fleetfoot"
    for step in error["loc"]:
        where += f"[{step}]" if isinstance(step, int) else f".{step}"
    where = where.replace("fleetfoot.", "fleetfoot:", 1)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), _KEYS, n=1)
        fix = f"did you mean {near[0]}?" if near else "remove it or mend its spelling"
        return f"{where}: no such key, so it would have no effect; {fix}"
    if error["type"] == "missing":
        return f"{where}: is missing, and there is no sensible default; add it"
    if error["type"] == "fleetfoot":
        return f"{where}: {error['msg']}"
    said = error["msg"][0].lower() + error["msg"][1:]
    return (
        f"{where}: {said}, but it is {error['input']!r}, so nothing could be made of it;"
        " docs/configuration.md has every key"
    )


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
    return [
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


def _namespaces(config: StackConfig) -> list[str]:
    problems = []
    for name, count in Counter(config.offline.namespaces).items():
        if name in _ONLINE_NAMESPACES or name.startswith("kube-"):
            problems.append(
                f"fleetfoot:offline.namespaces: {name!r} belongs to online, whose pods would lose"
                " their way to its apiservers; name another"
            )
        if count > 1:
            problems.append(
                f"fleetfoot:offline.namespaces: {name!r} is there {count} times, and could be made"
                " once; remove it"
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
