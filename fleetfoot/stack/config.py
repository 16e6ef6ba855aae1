"""The stack's configuration, typed and checked before anything happens.

Source: the `fleetfoot:` keys of `Pulumi.<stack>.yaml`. Every refusal names the field, what would
follow and what to write instead.
"""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleetfoot.errors import FleetfootError
from fleetfoot.machines.spec import IDLE
from fleetfoot.stack import checks
from fleetfoot.stack.fields import (
    WEIGHT,
    Group,
    Held,
    Label,
    Resource,
    Size,
    Subnet,
    Taint,
    Weight,
)
from fleetfoot.stack.sides import OFFLINE_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
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
    groups: tuple[Group, ...] = ()
    labels: dict[str, str] = {}
    taints: tuple[Taint, ...] = ()
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
        weight: Share of CPU time when the machine has too little. 100 is an ordinary service;
            online's apiservers and etcd stand before those.
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
    cpus: Annotated[float, Field(ge=0.01, le=256)] | None = None
    weight: Weight = WEIGHT
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
        objects: Resource to how many of its objects each of them may hold, where it is to be other
            than in OFFLINE_OBJECTS.
    """

    namespaces: Annotated[tuple[Label, ...], Field(min_length=1)] = (OFFLINE_NAMESPACE,)
    objects: dict[Held, Annotated[int, Field(ge=0, le=1_000_000)]] = {}


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

    def apiservers_on(self, pool: PoolConfig) -> dict[str, ApiserversConfig]:
        """Return the groups of apiservers on a pool's machines, and what each may use."""
        return {
            name: limits for name, limits in self.apiservers if f"apiserver_{name}" in pool.groups
        }

    def budgets(self, pool: PoolConfig) -> list[dict[str, Any]]:
        """Return what apiservers on a pool's machines may use, as fields of Budget."""
        return [
            {
                "name": f"kube-apiserver-{name}",
                "cpus": limits.cpus or 0,
                "memory": limits.memory or 0,
                "weight": limits.weight,
            }
            for name, limits in self.apiservers_on(pool).items()
            if limits.cpus or limits.memory or limits.weight != WEIGHT
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
    problems = checks.conflicts(config, host_memory_mib)
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
