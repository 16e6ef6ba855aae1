"""Ansible module: what programs are, by checksum and by what they say of themselves."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: program_facts
short_description: Checksum and version of programs, in one call
description:
  - Changes nothing.
options:
  programs:
    description: The programs.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name in the answer., type: str, required: true}
      path: {description: The program's file., type: path, required: true}
      tells: {description: Arguments that make it print its version., type: list, elements: str}
author: [Fleetfoot maintainers]
"""

EXAMPLES = """
- name: See which etcd is installed
  program_facts:
    programs: [{name: etcd, path: /usr/local/bin/etcd, tells: [--version]}]
"""

RETURN = """
programs:
  description: Programs by name.
  returned: success
  type: dict
  contains:
    sha256: {description: Checksum; empty when there is no such file., type: str}
    mode: {description: Permissions in octal., type: str}
    says: {description: What it printed., type: str}
"""

ARGUMENTS: dict[str, dict[str, Any]] = {
    "programs": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "tells": {"type": "list", "elements": "str"},
        },
    },
}


def facts(module: AnsibleModule, program: dict[str, Any]) -> dict[str, str]:
    """One program's facts."""
    path = Path(program["path"])
    if not path.is_file():
        return {"sha256": "", "mode": "", "says": ""}
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    says = ""
    if program["tells"] and os.access(path, os.X_OK):
        _, out, err = module.run_command([str(path), *program["tells"]])
        says = (out + err).strip()
    return {
        "sha256": digest.hexdigest(),
        "mode": f"{path.stat().st_mode & 0o7777:04o}",
        "says": says,
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    found = {program["name"]: facts(module, program) for program in module.params["programs"]}
    module.exit_json(changed=False, programs=found)


if __name__ == "__main__":
    main()
