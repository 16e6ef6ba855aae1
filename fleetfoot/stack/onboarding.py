"""Running playbooks on machines of the stack, with pinned host keys and a log per run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetfoot import artifacts
from fleetfoot.cluster import Cluster
from fleetfoot.errors import FleetfootError
from fleetfoot.images.definition import content_key
from fleetfoot.paths import PROJECT, StackPaths, private_dir, write_private
from fleetfoot.roles import roles_of
from fleetfoot.shell import FAMILY

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["playbook_digest", "run"]

_TAIL_LINES = 30


def playbook_digest(playbook: str) -> str:
    """Return a hash of a playbook, its roles, variables, plug-ins and the node software."""
    path = PROJECT / "playbooks" / playbook
    roles = [PROJECT / "roles" / role for role in roles_of(path)]
    shared = [PROJECT / "playbooks" / "group_vars", PROJECT / "plugins"]
    return f"{content_key([path, *roles, *shared], PROJECT)}-{artifacts.directory().name}"


def run(props: Mapping[str, Any]) -> None:
    """Run a playbook.

    Args:
        props: `stack`, `name` (of the run), `playbook` (path below playbooks/), `inventory` (an
            Ansible inventory as data), `limit` (hosts), `tags` (tasks), `nodes` (names to wait for
            until Ready).

    Raises:
        FleetfootError: It failed; the message carries the end of its log.
    """
    paths = StackPaths(props["stack"])
    inventory = write_private(
        paths.root / "inventory" / f"{props['name']}.json",
        json.dumps(_whole(props["inventory"]), indent=1),
    )
    log = private_dir(paths.root / "logs") / f"{props['name']}.log"
    # A killed run must leave no playbook that the next one would meet on the same machines.
    argv = [*FAMILY, str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory)]
    argv += ["--limit", ",".join(props["limit"])] if props.get("limit") else []
    argv += ["--tags", ",".join(props["tags"])] if props.get("tags") else []
    argv += [str(PROJECT / "playbooks" / props["playbook"])]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        # One interpreter a host for the whole run: on an emulated guest a start takes seconds.
        "ANSIBLE_STRATEGY": "mitogen_linear",
    }
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
        done = subprocess.run(
            argv,
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        raise FleetfootError(
            f"playbook {props['playbook']} failed for {', '.join(props.get('limit') or ['all'])}",
            f"the end of {log.relative_to(PROJECT)}:\n{tail}",
            "mend what it names and run the command again: it continues there",
        )
    for node in props.get("nodes") or []:
        Cluster(props["stack"]).wait_ready(node)


def _whole(value: Any) -> Any:
    """Undo what Pulumi's wire format does to whole numbers: it knows floating point only."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
