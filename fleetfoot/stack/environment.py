"""The environment: network, images, pools, playbooks and platform objects, in one direction."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pulumi
import pulumi_kubernetes as kubernetes

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.building import form_key
from fleetfoot.paths import StackPaths
from fleetfoot.stack.bootimage import image_key
from fleetfoot.stack.config import load
from fleetfoot.stack.inventory import (
    SAMPLE_PORT,
    api_url,
    registry_address,
    render,
    service_names,
    zone,
)
from fleetfoot.stack.join import node_inputs
from fleetfoot.stack.onboarding import playbook_digest
from fleetfoot.stack.platform import Platform
from fleetfoot.stack.pool import VmPool, VmPoolArgs
from fleetfoot.stack.resources import ContainerImage, Endpoint, Image, Machine, Network, Playbook
from fleetfoot.stack.sample import Sample
from fleetfoot.stack.sides import OFFLINE_OBJECTS

if TYPE_CHECKING:
    from fleetfoot.stack.config import PoolConfig, StackConfig

__all__ = ["Environment", "configuration"]

#: The image that playbooks/bake.yml applies all node roles to.
BAKED_IMAGE = "serverless"


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
        return load(found, stack=pulumi.get_stack())
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
        self._stack, self._config = stack, config
        self._paths = StackPaths(stack)
        self._network = Network(
            "network",
            stack=stack,
            cidr=config.network.cidr,
            uplink=config.network.uplink,
            zone=zone(stack),
            cluster=[config.network.pods, config.network.services],
            opts=pulumi.ResourceOptions(parent=self),
        )
        self._images = {
            name: Image(name, key=image_key(name), opts=pulumi.ResourceOptions(parent=self))
            for name in sorted({pool.image for pool in config.pools})
        }
        nodes = config.in_group("workers")
        others = [pool for pool in config.pools if pool not in nodes]
        authorities = self._authorities(others)
        control = {pool.name: self._pool(pool) for pool in others}
        site = self._site(control, authorities)
        # Nodes carry certificates. The first ones boot while the control plane comes up; later,
        # when they are replaced, it must be there to drain them.
        before = site if self._paths.kubeconfig.exists() else authorities
        workers = {pool.name: self._pool(pool, before, self._node(control)) for pool in nodes}
        self.inventory = self._inventory({**control, **workers})
        onboarded = [
            self._onboard(machine, pool, site)
            for pool in nodes
            for machine in workers[pool.name].machines
        ]
        self.kubeconfig = pulumi.Output.from_input(str(self._paths.kubeconfig))
        self.registry = pulumi.Output.from_input(registry_address(stack))
        cluster = kubernetes.Provider(
            "cluster",
            kubeconfig=str(self._paths.kubeconfig),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[site]),
        )
        Platform(
            "platform",
            offline_url=api_url(stack, "offline"),
            offline_namespaces=config.offline.namespaces,
            offline_objects={**OFFLINE_OBJECTS, **config.offline.objects},
            provider=cluster,
            environment=self,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[site]),
        )
        self.sample_url = self._sample(control, cluster, [site, *onboarded])
        self.register_outputs({"inventory": self.inventory})

    def _inventory(self, pools: dict[str, VmPool]) -> pulumi.Output[dict[str, Any]]:
        parts = pulumi.Output.all(
            self._network.gateway, *(pool.addresses for pool in pools.values())
        )

        def rendered(given: list[Any]) -> dict[str, Any]:
            gateway, *addresses = given
            merged = {name: address for part in addresses for name, address in part.items()}
            return render(self._stack, self._config, merged, gateway)

        return parts.apply(rendered)

    def _authorities(self, pools: list[PoolConfig]) -> Playbook:
        """What signs and unlocks: made on this host, before any machine."""
        names = [name for pool in pools for name in pool.machine_names]
        return Playbook(
            "authorities",
            stack=self._stack,
            playbook="authorities.yml",
            inventory=render(self._stack, self._config, dict.fromkeys(names, ""), ""),
            digest=playbook_digest("authorities.yml"),
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _site(self, control: dict[str, VmPool], authorities: Playbook) -> Playbook:
        """The control plane: what site.yml makes of the control machines."""
        inventory = self._inventory(control)
        return Playbook(
            "site",
            stack=self._stack,
            playbook="site.yml",
            inventory=inventory,
            digest=playbook_digest("site.yml"),
            triggers={
                # Groups and limits: an apiserver more is a group more.
                "inventory": inventory.apply(_digest),
                **{
                    machine: pulumi.Output.all(m.address, m.host_key, m.started)
                    for pool in control.values()
                    for machine, m in zip(pool.names, pool.machines, strict=True)
                },
            },
            # Its certificates last a year; a run renews those in their last 90 days.
            repeat=30,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[authorities]),
        )

    def _onboard(self, machine: Machine, pool: PoolConfig, site: Playbook) -> Playbook:
        """One node: what onboard.yml makes of a worker, then Ready.

        A machine that has just booted from an image with the roles baked in needs no more than a
        look at what only the running kernel can show.
        """
        name = machine.machine_name
        return Playbook(
            f"onboard-{name}",
            stack=self._stack,
            playbook="onboard.yml",
            inventory=self.inventory,
            limit=[name],
            tags=["verify"] if pool.image == BAKED_IMAGE else [],
            nodes=[name],
            digest=playbook_digest("onboard.yml"),
            triggers={name: pulumi.Output.all(machine.address, machine.host_key, machine.started)},
            opts=pulumi.ResourceOptions(parent=self, depends_on=[site]),
        )

    def _sample(
        self, control: dict[str, VmPool], cluster: kubernetes.Provider, ready: list[Playbook]
    ) -> pulumi.Output[str]:
        """The sample service, when it is switched on; returns where it answers."""
        if not self._config.sample.enabled:
            return pulumi.Output.from_input("")
        image = ContainerImage(
            "sample",
            stack=self._stack,
            key=image_key("sample"),
            form=form_key(),
            registry=registry_address(self._stack),
            address=self._address(control, "registry", 5000),
            opts=pulumi.ResourceOptions(parent=self, depends_on=ready[:1]),
        )
        sample = Sample(
            "sample",
            image=image.reference,
            replicas=self._config.sample.replicas,
            provider=cluster,
            # The cluster's memory ends with its machines: no need to ask it to forget each object.
            environment=self,
            opts=pulumi.ResourceOptions(parent=self, depends_on=ready),
        )
        base = pulumi.Output.concat("http://", self._address(control, "load_balancer", SAMPLE_PORT))
        Endpoint(
            "sample",
            url=pulumi.Output.concat(base, "/healthz"),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[sample]),
        )
        return base

    def _address(self, control: dict[str, VmPool], group: str, port: int) -> pulumi.Output[str]:
        """Where the host reaches the first machine of a group.

        Asked of that machine, not of the inventory: a worker that comes is no news to it.
        """
        pool = next(pool for pool in self._config.in_group(group) if pool.count)
        return pulumi.Output.concat(control[pool.name].machines[0].address, f":{port}")

    def _pool(
        self, pool: PoolConfig, after: Playbook | None = None, node: dict[str, Any] | None = None
    ) -> VmPool:
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
                aliases=[f"{pool.name}.pool", *service_names(pool.groups)],
                volumes=pool.volumes,
                budgets=self._config.budgets(pool),
                labels=pool.labels,
                taints=pool.taints,
                node=node,
                roll=pool.roll.model_dump(),
            ),
            opts=pulumi.ResourceOptions(
                parent=self, depends_on=[self._network, *([after] if after else [])]
            ),
        )

    def _node(self, control: dict[str, VmPool]) -> dict[str, Any]:
        """How machines of the stack join its cluster."""
        resolvers = [
            machine.address
            for pool in self._config.in_group("dns")
            for machine in control[pool.name].machines
        ]
        return node_inputs(self._stack, resolvers, self._config.network.pods)


def _digest(inventory: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inventory, sort_keys=True).encode()).hexdigest()
