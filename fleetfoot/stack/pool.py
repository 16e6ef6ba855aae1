"""VmPool: machines of one kind as a Pulumi component."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pulumi

from fleetfoot.stack.resources import Machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["VmPool", "VmPoolArgs"]


@dataclass(frozen=True)
class VmPoolArgs:
    """What a pool is made from.

    Attributes:
        stack: Stack name.
        count: Number of machines.
        backend: Where machines come from.
        image: What they boot (`Image.boot`).
        cpus: CPUs of a machine.
        memory: MiB of a machine.
        disk: MiB of writable space of a machine.
        aliases: Names in the stack's zone that resolve to every machine of the pool.
        volumes: Folders whose contents outlive a machine.
        budgets: What services of a machine may use, each `name`, `cpus`, `memory` (0: no bound)
            and `weight`.
        labels: Node labels.
        taints: Node taints, `key=value:Effect`.
        node: How machines join the cluster; None for machines that are no nodes.
        roll: `max_surge` and `max_unavailable`.
    """

    stack: str
    count: int
    backend: str
    image: pulumi.Input[Mapping[str, Any]]
    cpus: float
    memory: int
    disk: int
    aliases: Sequence[str] = ()
    volumes: Sequence[str] = ()
    budgets: Sequence[Mapping[str, Any]] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[str] = ()
    node: Mapping[str, Any] | None = None
    roll: Mapping[str, int] = field(default_factory=lambda: {"max_unavailable": 1})


class VmPool(pulumi.ComponentResource):
    """Machines named `<pool>-1`, `<pool>-2`, ...

    Growing or shrinking touches only the machines that come or go. A changed image, size or boot
    setting goes through the pool machine by machine.

    Attributes:
        machines: The machines, in order of their numbers.
        addresses: Machine name to IPv4 address.
    """

    machines: list[Machine]
    addresses: pulumi.Output[dict[str, str]]

    def __init__(
        self, name: str, args: VmPoolArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("fleetfoot:index:VmPool", name, None, opts)
        node = None
        if args.node is not None:
            node = {**args.node, "labels": dict(args.labels), "taints": list(args.taints)}
        self.machines = [
            Machine(
                f"{name}-{number}",
                stack=args.stack,
                pool=name,
                backend=args.backend,
                image=args.image,
                cpus=args.cpus,
                memory=args.memory,
                disk=args.disk,
                aliases=args.aliases,
                volumes=args.volumes,
                budgets=args.budgets,
                node=node,
                roll=args.roll,
                opts=pulumi.ResourceOptions(parent=self),
            )
            for number in range(1, args.count + 1)
        ]
        self.names = [f"{name}-{number}" for number in range(1, args.count + 1)]
        self.addresses = pulumi.Output.all(*(m.address for m in self.machines)).apply(
            lambda given: dict(zip(self.names, given, strict=True))
        )
        self.register_outputs({"addresses": self.addresses})
