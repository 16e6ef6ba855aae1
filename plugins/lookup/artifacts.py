"""Lookup plug-in: the folder of the programs that playbooks/host.yml built."""

from __future__ import annotations

DOCUMENTATION = """
name: artifacts
short_description: The controller's folder of built programs
description:
  - Where C(make host) (playbooks/host.yml) has put the node software; the fact
    C(fleetfoot_artifacts_dir) of an inventory.
options: {}
"""

EXAMPLES = """
fleetfoot_artifacts_dir: "{{ lookup('artifacts') }}"
"""

RETURN = """
_raw:
  description: One path.
  type: list
  elements: path
"""

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from fleetfoot import artifacts
from fleetfoot.errors import FleetfootError


class LookupModule(LookupBase):  # type: ignore[misc]  # Ansible is untyped
    """The plug-in."""

    def run(self, terms: list[str], variables: Any = None, **kwargs: Any) -> list[str]:
        """Return the folder as the only element."""
        del terms, variables, kwargs
        try:
            return [str(artifacts.directory())]
        except FleetfootError as told:
            raise AnsibleError(str(told)) from told
