"""Which roles a playbook applies: the content that its outcome depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["content_of", "roles_of"]

_PLAYBOOK = "ansible.builtin.import_playbook"
_ROLE = ("ansible.builtin.include_role", "ansible.builtin.import_role")


def content_of(project: Path, roles: Iterable[str]) -> list[Path]:
    """Return the files and folders with all that roles bring to a machine, but programs."""
    parts = []
    for role in roles:
        parts.append(folder := project / "roles" / role)
        # A role that installs modules of the package names them so.
        if (variables := folder / "vars/main.yml").exists():
            named = (yaml.safe_load(variables.read_text()) or {}).get(f"__{role}_modules", ())
            parts += [project / "fleetfoot" / module for module in named]
    return parts


def roles_of(playbook: Path, group: str = "") -> list[str]:
    """Return the roles of a playbook with those that they include, sorted.

    Args:
        playbook: Below playbooks/ of a project.
        group: Only plays whose `hosts` names this group; empty takes all plays.
    """
    project = playbook.parent.parent
    seen: set[str] = set()
    for role in _named(playbook, group):
        _collect(project, role, seen)
    return sorted(seen)


def _named(playbook: Path, group: str) -> Iterator[str]:
    for play in yaml.safe_load(playbook.read_text()) if playbook.exists() else []:
        if _PLAYBOOK in play:
            yield from _named(playbook.parent / play[_PLAYBOOK], group)
        elif not group or group in play["hosts"].split(":"):
            for entry in play.get("roles", ()):
                yield entry if isinstance(entry, str) else entry["role"]
            yield from _included(play.get("tasks", []))


def _collect(project: Path, role: str, seen: set[str]) -> None:
    if role in seen:
        return
    seen.add(role)
    for path in sorted((project / "roles" / role).rglob("*.yml")):
        if path.relative_to(project).parts[2] in ("tasks", "handlers", "meta"):
            for found in _included(yaml.safe_load(path.read_text())):
                _collect(project, found, seen)


def _included(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _included(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in _ROLE:
                yield value["name"]
            elif key == "dependencies":
                yield from (entry if isinstance(entry, str) else entry["role"] for entry in value)
            else:
                yield from _included(value)
