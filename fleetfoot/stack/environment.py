"""The environment: network, images, pools, playbooks and platform objects, in one direction."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pulumi

from fleetfoot.errors import FleetfootError
from fleetfoot.paths import StackPaths
from fleetfoot.stack.bootimage import image_key
from fleetfoot.stack.config import load
from fleetfoot.stack.inventory import render, zone
from fleetfoot.stack.pool import VmPool, VmPoolArgs
from fleetfoot.stack.resources import Image, Network

if TYPE_CHECKING:
    from fleetfoot.stack.config import PoolConfig, StackConfig

__all__ = ["Environment", "configuration"]


def configuration() -> StackConfig:
    """Return the stack's `fleetfoot:` keys, checked; unknown ones are refused.

    Raises:
        pulumi.RunError: Something in them is wrong; engines print it without a traceback.
    """
    found: dict[str, Any] = {}
    for key, value in pulumi.runtime.config.CONFIG.get().items():
        namespace, _, name = key.partition(":")
        if namespace == "fleetfoot":
            try:
                found[name] = json.loads(value)
            except json.JSONDecodeError:
                found[name] = value
    try:
        return load(found)
    except FleetfootError as told:
        raise pulumi.RunError(str(told)) from told


class Environment(pulumi.ComponentResource):
    """A whole stack.

    Attributes:
        inventory: Ansible inventory of its machines.
        kubeconfig: Path of the operator's kubeconfig.
        registry: Registry address.
        sample_url: Where the sample service answers; empty when it is switched off.
    """

    inventory: pulumi.Output[dict[str, Any]]
    kubeconfig: pulumi.Output[str]
    registry: pulumi.Output[str]
    sample_url: pulumi.Output[str]

    def __init__(
        self, stack: str, config: StackConfig, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("fleetfoot:index:Environment", stack, None, opts)
        self._stack, self._config, self._zone = stack, config, zone(stack)
        self._paths = StackPaths(stack)
        self._network = Network(
            "network",
            stack=stack,
            cidr=config.network.cidr,
            uplink=config.network.uplink,
            zone=self._zone,
            opts=pulumi.ResourceOptions(parent=self),
        )
        self._images = {
            name: Image(name, key=image_key(name), opts=pulumi.ResourceOptions(parent=self))
            for name in sorted({pool.image for pool in config.pools})
        }
        self._pools = {pool.name: self._pool(pool) for pool in config.pools}
        addresses = pulumi.Output.all(*(pool.addresses for pool in self._pools.values())).apply(
            lambda parts: {name: address for part in parts for name, address in part.items()}
        )
        self.inventory = addresses.apply(
            lambda given: render(stack, config, given, self._shared_variables())
        )
        self.kubeconfig = pulumi.Output.from_input(str(self._paths.kubeconfig))
        self.registry = pulumi.Output.from_input(f"registry.{self._zone}:5000")
        self.sample_url = pulumi.Output.from_input("")
        self.register_outputs({"inventory": self.inventory})

    def _pool(self, pool: PoolConfig) -> VmPool:
        return VmPool(
            pool.name,
            VmPoolArgs(
                stack=self._stack,
                count=pool.count,
                backend=pool.backend,
                image=self._images[pool.image].boot,
                cpus=pool.cpus,
                memory=pool.memory,
                disk=pool.disk,
                aliases=[f"{pool.name}.pool", *self._service_names(pool)],
                volumes=pool.volumes,
                labels=pool.labels,
                taints=pool.taints,
                roll=pool.roll.model_dump(),
            ),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[self._network]),
        )

    def _service_names(self, pool: PoolConfig) -> list[str]:
        names = {"load_balancer": "api-online", "registry": "registry"}
        return [name for group, name in names.items() if group in pool.groups]

    def _shared_variables(self) -> dict[str, Any]:
        return {}
