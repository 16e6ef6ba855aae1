"""The program that `pulumi up` (or the embedded engine) runs: configuration in, environment out."""

import pulumi

from fleetfoot.stack.environment import Environment, configuration

stack = pulumi.get_stack()
environment = Environment(stack, configuration())

pulumi.export("stack", stack)
pulumi.export("inventory", environment.inventory)
pulumi.export("kubeconfig", environment.kubeconfig)
pulumi.export("registry", environment.registry)
pulumi.export("sample_url", environment.sample_url)
