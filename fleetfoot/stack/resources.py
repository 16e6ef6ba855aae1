"""The resources of a stack, as Pulumi programs use them: typed fronts of the dynamic providers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pulumi  # noqa: TC002  (pulumi reads the annotations of outputs at run time)
from pulumi.dynamic import Resource

from fleetfoot.stack.providers import (
    ContainerImageProvider,
    EndpointProvider,
    ImageProvider,
    MachineProvider,
    NetworkProvider,
    PlaybookProvider,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ContainerImage", "Endpoint", "Image", "Machine", "Network", "Playbook"]


class Network(Resource, module="fleetfoot", name="Network"):
    """The network of a stack on this host.

    Outputs: `gateway` (address), `prefix` (bits), `public_key` (opens the machines).
    """

    gateway: pulumi.Output[str]
    prefix: pulumi.Output[int]
    public_key: pulumi.Output[str]

    def __init__(
        self,
        resource_name: str,
        *,
        stack: str,
        cidr: str,
        uplink: str,
        zone: str,
        cluster: Sequence[str] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        outputs = dict.fromkeys(("gateway", "prefix", "public_key"))
        ranges = {"cidr": cidr, "uplink": uplink, "cluster": list(cluster)}
        props = {"stack": stack, "zone": zone, **ranges, **outputs}
        super().__init__(NetworkProvider(), resource_name, props, opts)


class Image(Resource, module="fleetfoot", name="Image"):
    """A machine image.

    Outputs: `boot` (what to boot: digest, path, kernel, initrd, cmdline, seed).
    """

    boot: pulumi.Output[dict[str, Any]]

    def __init__(
        self, resource_name: str, *, key: str, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        props = {"name": resource_name, "key": key, "boot": None}
        super().__init__(ImageProvider(), resource_name, props, opts)


class ContainerImage(Resource, module="fleetfoot", name="ContainerImage"):
    """A container image in the stack's registry.

    Outputs: `reference` (host:port/name@digest).
    """

    reference: pulumi.Output[str]

    def __init__(
        self,
        resource_name: str,
        *,
        stack: str,
        key: str,
        form: str,
        registry: str,
        address: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {
            "name": resource_name,
            "stack": stack,
            "key": key,
            "form": form,
            "registry": registry,
            "address": address,
            "reference": None,
        }
        super().__init__(ContainerImageProvider(), resource_name, props, opts)


class Endpoint(Resource, module="fleetfoot", name="Endpoint"):
    """An address that answers HTTP requests with status 200.

    Outputs: `url`.
    """

    url: pulumi.Output[str]

    def __init__(
        self,
        resource_name: str,
        *,
        url: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {"name": resource_name, "url": url}
        super().__init__(EndpointProvider(), resource_name, props, opts)


class Machine(Resource, module="fleetfoot", name="Machine"):
    """One machine.

    Outputs: `address` (IPv4), `host_key` (SSH, public line), `started` (epoch seconds).
    """

    address: pulumi.Output[str]
    host_key: pulumi.Output[str]
    started: pulumi.Output[float]

    def __init__(
        self,
        resource_name: str,
        *,
        stack: str,
        pool: str,
        backend: str,
        image: pulumi.Input[Mapping[str, Any]],
        cpus: float,
        memory: int,
        disk: int,
        aliases: Sequence[str],
        volumes: Sequence[str],
        budgets: Sequence[Mapping[str, Any]],
        node: pulumi.Input[Mapping[str, Any]] | None,
        roll: Mapping[str, int],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {
            "name": resource_name,
            "stack": stack,
            "pool": pool,
            "backend": backend,
            "image": image,
            "cpus": cpus,
            "memory": memory,
            "disk": disk,
            "aliases": list(aliases),
            "volumes": list(volumes),
            "budgets": [dict(budget) for budget in budgets],
            "node": node,
            "roll": dict(roll),
            **dict.fromkeys(("address", "host_key", "started")),
        }
        self.machine_name = resource_name
        super().__init__(MachineProvider(), resource_name, props, opts)


class Playbook(Resource, module="fleetfoot", name="Playbook"):
    """A playbook that ran on some hosts; runs again when an input changes.

    `repeat` lets an `up` run it again that many days later: what it issued is renewed so.
    """

    def __init__(
        self,
        resource_name: str,
        *,
        stack: str,
        playbook: str,
        inventory: pulumi.Input[Mapping[str, Any]],
        limit: Sequence[str] = (),
        tags: Sequence[str] = (),
        nodes: Sequence[str] = (),
        digest: str,
        triggers: pulumi.Input[Mapping[str, Any]] | None = None,
        repeat: int = 0,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {
            "name": resource_name,
            "stack": stack,
            "playbook": playbook,
            "inventory": inventory,
            "limit": list(limit),
            "tags": list(tags),
            "nodes": list(nodes),
            "digest": digest,
            "triggers": triggers or {},
            "repeat": repeat,
        }
        super().__init__(PlaybookProvider(), resource_name, props, opts)
