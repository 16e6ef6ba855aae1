"""Lookup plug-in: the apt source of the release's backports suite."""

from __future__ import annotations

DOCUMENTATION = """
name: backports_source
short_description: The deb822 paragraph of the host release's backports suite
description:
  - Derived from the controller's own apt configuration, so that no archive's address is part of a
    playbook.
options: {}
"""

RETURN = """
_raw:
  description: One paragraph in deb822 format.
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from fleetfoot.errors import FleetfootError
from fleetfoot.images import apt


class LookupModule(LookupBase):  # type: ignore[misc]  # Ansible is untyped
    """The plug-in."""

    def run(self, terms: list[str], variables: Any = None, **kwargs: Any) -> list[str]:
        """Return the paragraph as the only element."""
        del terms, variables, kwargs
        try:
            return [apt.backports_source(Path("/etc/apt")).render()]
        except FleetfootError as told:
            raise AnsibleError(str(told)) from told
