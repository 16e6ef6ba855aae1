"""Ansible module: whether a unit runs with files that were changed after it started."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: unit_outdated
short_description: Tell whether a systemd unit is older than what it reads
description:
  - Changes nothing; it is C(changed) when a file is newer than the last start or reload, so that it
    can notify the handler that a run which was cut off did not come to.
options:
  name:
    description: The unit.
    type: str
    required: true
  reads:
    description: Files that the unit reads; those that are not there are passed over.
    type: list
    elements: path
    default: []
  itself:
    description: Whether the unit's own files and its programs count, too.
    type: bool
    default: true
author: [Fleetfoot maintainers]
"""

EXAMPLES = """
- name: See whether etcd runs what is written
  unit_outdated:
    name: etcd
    reads: [/etc/etcd/etcd.yaml]
  notify: Restart etcd
"""

RETURN = """
newer:
  description: Files that are newer than the last start or reload.
  returned: success
  type: list
  elements: str
"""

ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "reads": {"type": "list", "elements": "path", "default": []},
    "itself": {"type": "bool", "default": True},
}

_ASKED = ("ActiveState", "StateChangeTimestamp", "FragmentPath", "DropInPaths", "ExecStart")
# What `systemctl set-property` wrote is in force without a restart.
_IN_FORCE = "/system.control/"


def properties(module: AnsibleModule, unit: str) -> dict[str, str]:
    """Properties of a unit, as systemd prints them."""
    argv = ["systemctl", "show", "--timestamp=us+utc", f"--property={','.join(_ASKED)}", "--", unit]
    _, out, _ = module.run_command(argv, check_rc=True)
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def since(said: str) -> float:
    """Return a time of systemd's (`Mon 2026-11-23 01:00:00.123456 UTC`) in epoch seconds."""
    _, day, time, _ = said.split()
    return datetime.datetime.fromisoformat(f"{day}T{time}+00:00").timestamp()


def own_files(found: dict[str, str]) -> list[str]:
    """Return a unit's files, and programs among the words that start it."""
    files = [found["FragmentPath"], *found["DropInPaths"].split()]
    words = {word.removeprefix("path=") for word in found["ExecStart"].split()}
    paths = {word for word in words if word.startswith("/") and Path(word).is_file()}
    programs = sorted(path for path in paths if os.access(path, os.X_OK))
    return [file for file in files if file and _IN_FORCE not in file] + programs


def newer(files: list[str], than: float) -> list[str]:
    """Return those of the files that were changed after a time (epoch seconds)."""
    there = {file for file in files if Path(file).exists()}
    return sorted(file for file in there if Path(file).stat().st_mtime > than)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    found = properties(module, module.params["name"])
    if found.get("ActiveState") not in {"active", "reloading"} or not found["StateChangeTimestamp"]:
        module.exit_json(changed=False, newer=[])
    files = module.params["reads"] + (own_files(found) if module.params["itself"] else [])
    outdated = newer(files, since(found["StateChangeTimestamp"]))
    module.exit_json(changed=bool(outdated), newer=outdated)


if __name__ == "__main__":
    main()
