"""Inventory plug-in: the machines of a running stack, as the stack's state knows them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin

from fleetfoot.engine import Engine, EngineError
from fleetfoot.errors import FleetfootError
from fleetfoot.paths import PROJECT

if TYPE_CHECKING:
    from ansible.inventory.data import InventoryData
    from ansible.parsing.dataloader import DataLoader

DOCUMENTATION = """
name: fleetfoot
short_description: Machines of a running Fleetfoot stack
description:
  - Reads the stack output C(inventory) from the state that C(make up) or C(pulumi up) keeps in
    C(.fleetfoot/state), whichever engine wrote it. Nothing is kept twice, no machine is asked.
author: [Fleetfoot maintainers]
options:
  plugin:
    description: This plug-in.
    required: true
    choices: [fleetfoot]
  stack:
    description: The stack.
    default: local
    env:
      - name: STACK
  project:
    description: The checkout whose stack it is; this one when it is empty.
    default: ""
    env:
      - name: FLEETFOOT_PROJECT
"""

EXAMPLES = """
# inventory/fleetfoot.yml; STACK=name chooses another stack.
plugin: fleetfoot
"""


class InventoryModule(BaseInventoryPlugin):  # type: ignore[misc]  # Ansible is untyped
    """The plug-in."""

    NAME = "fleetfoot"

    def verify_file(self, path: str) -> bool:
        """Whether the file may be one for this plug-in."""
        return bool(super().verify_file(path)) and path.endswith(
            ("fleetfoot.yml", "fleetfoot.yaml")
        )

    def parse(
        self, inventory: InventoryData, loader: DataLoader, path: str, cache: bool = True
    ) -> None:
        """Add the stack's hosts, groups and variables."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        project = Path(self.get_option("project") or PROJECT)
        try:
            found = stack_inventory(project, self.get_option("stack"))
        except (FleetfootError, EngineError) as told:
            raise AnsibleParserError(str(told)) from told
        self._add("all", found["all"])

    def _add(self, name: str, group: dict[str, Any]) -> None:
        """Add a group in Ansible's YAML layout, with what is below it."""
        self.inventory.add_group(name)
        for variable, value in group.get("vars", {}).items():
            self.inventory.set_variable(name, variable, value)
        # The order of hosts must not depend on who wrote the state: lists of neighbours follow it.
        for host, variables in sorted(group.get("hosts", {}).items()):
            self.inventory.add_host(host, group=name)
            for variable, value in (variables or {}).items():
                self.inventory.set_variable(host, variable, value)
        for child, below in group.get("children", {}).items():
            self._add(child, below)
            self.inventory.add_child(name, child)


def stack_inventory(project: Path, stack: str) -> dict[str, Any]:
    """Return the output `inventory` of a stack.

    Raises:
        FleetfootError: The stack was never made, or has no machines yet.
    """
    state = project / ".fleetfoot"
    passphrase = state / "passphrase"
    if not passphrase.exists() or not (state / "state").is_dir():
        raise _absent(stack, f"{state / 'state'} does not exist")
    engine = Engine(
        project,
        stack,
        backend_url=f"file://{state / 'state'}",
        passphrase=passphrase.read_text().strip(),
    )
    outputs = engine.outputs(show_secrets=True)
    if "inventory" not in outputs:
        what = "has no output `inventory`" if outputs else "is not in the state"
        raise _absent(stack, f"it {what}")
    found: dict[str, Any] = outputs["inventory"]
    return found


def _absent(stack: str, why: str) -> FleetfootError:
    return FleetfootError(
        f"stack: there is no running stack {stack!r} ({why})",
        "the inventory is empty, so a playbook would do nothing",
        f"run `make up STACK={stack}`, name another stack with STACK=name, or give an inventory of"
        " your own with -i (inventory/samples)",
    )
