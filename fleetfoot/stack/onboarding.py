"""Running playbooks on machines of the stack, with pinned host keys and a log per run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetfoot import artifacts
from fleetfoot.cluster import Cluster
from fleetfoot.errors import FleetfootError
from fleetfoot.images.definition import content_key
from fleetfoot.machines.fleet import Fleet
from fleetfoot.paths import PROJECT, StackPaths, private_dir, write_private
from fleetfoot.roles import content_of, roles_of
from fleetfoot.shell import FAMILY

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["catch_up", "playbook_digest", "recorded", "run"]

_TAIL_LINES = 30
_SITE = "site.yml"
# Files of a stack: what site.yml made of it last, and with which programs.
_VERSION = "kubernetes-version"
_PROGRAMS = "site-programs"
# There while an upgrade that was let in has not come through.
_UNDER_WAY = "upgrade-under-way"
_NUMBER = re.compile(r"\d+")
# How ansible-playbook ends when a machine did not answer and nothing else failed.
_UNREACHABLE = 4
# After its host was restarted a control plane takes a while until it answers.
_PATIENCE, _PAUSE = 60.0, 1.0


def playbook_digest(playbook: str) -> str:
    """Return a hash of a playbook, its roles, variables, plug-ins and the node software."""
    path = PROJECT / "playbooks" / playbook
    roles = content_of(PROJECT, roles_of(path))
    shared = [PROJECT / "playbooks" / "group_vars", PROJECT / "plugins"]
    return f"{content_key([path, *roles, *shared], PROJECT)}-{artifacts.directory().name}"


def run(props: Mapping[str, Any]) -> None:
    """Run a playbook.

    Args:
        props: `stack`, `name` (of the run), `playbook` (path below playbooks/), `inventory` (an
            Ansible inventory as data), `limit` (hosts), `tags` (tasks), `nodes` (names to wait for
            until Ready).

    Raises:
        FleetfootError: It failed; the message carries the end of its log. Or it would bring a
            running control plane to programs that it must not go to; then nothing was changed.
    """
    if props["playbook"] == _SITE and not props.get("limit"):
        _site(props)
    else:
        _play(props)
    for node in props.get("nodes") or []:
        Cluster(props["stack"]).wait_ready(node)


def recorded(stack: str) -> dict[str, Any] | None:
    """Return the inventory's `all` of the control plane, with this checkout's programs.

    Machines are given no others: roles refuse what is not pinned. None before the first run.
    """
    every = StackPaths(stack).control_plane()
    if every is None:
        return None
    return {
        **every,
        "vars": {**every["vars"], "fleetfoot_artifacts_dir": str(artifacts.directory())},
    }


def catch_up(stack: str) -> None:
    """Upgrade a running control plane in place, where this checkout has other programs.

    It comes before one of its machines is replaced: the new machine gets the new programs, and they
    go to members of etcd, apiservers and controllers in an order, after refusals and a copy.

    Raises:
        FleetfootError: A machine of it is down, the upgrade failed, or one that does not answer
            must not go to these programs.
    """
    root = StackPaths(stack).root
    if _programs(root) == artifacts.directory().name:
        return
    every = recorded(stack)
    if every is None:
        return
    if not _answers_soon(Cluster(stack), root):
        _check_step(root, _offered())
        return
    running = {machine.address for machine in Fleet.of_stack(stack).all() if machine.running}
    down = sorted(
        name for name, facts in every["hosts"].items() if facts["ansible_host"] not in running
    )
    if down:
        raise FleetfootError(
            f"{', '.join(down)} of the control plane is down, and this checkout has other programs",
            "the control plane would be upgraded while a member is away, so nothing was changed",
            "bring it back with the checkout that made it (`fleetfoot up`), then run this again",
        )
    run({"stack": stack, "name": "site", "playbook": _SITE, "inventory": {"all": every}})


def _play(props: Mapping[str, Any], *options: str) -> None:
    paths = StackPaths(props["stack"])
    inventory = write_private(
        paths.inventory(props["name"]),
        json.dumps(_whole(props["inventory"]), indent=1),
    )
    log = private_dir(paths.root / "logs") / f"{props['name']}.log"
    # A killed run must leave no playbook that the next one would meet on the same machines.
    argv = [*FAMILY, str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory)]
    argv += ["--limit", ",".join(props["limit"])] if props.get("limit") else []
    argv += ["--tags", ",".join(props["tags"])] if props.get("tags") else []
    argv += [*options, str(PROJECT / "playbooks" / props["playbook"])]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
    }
    # A guest that boots on a busy host may keep the first connection waiting for longer than a
    # second one takes.
    attempts = 2 if props.get("nodes") else 1
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
        for _ in range(attempts):
            done = subprocess.run(
                argv,
                cwd=PROJECT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
            if done.returncode != _UNREACHABLE:
                break
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        raise FleetfootError(
            f"playbook {props['playbook']} failed for {', '.join(props.get('limit') or ['all'])}",
            f"the end of {log.relative_to(PROJECT)}:\n{tail}",
            "mend what it names and run the command again: it continues there",
        )


def _site(props: Mapping[str, Any]) -> None:
    """Make the control plane; one that runs other programs is upgraded."""
    cluster, paths = Cluster(props["stack"]), StackPaths(props["stack"])
    root = paths.root
    programs, offered = artifacts.directory(), _offered()
    if not _answers_soon(cluster, root):
        _check_step(root, offered)
    elif _made_with_others(cluster, root, offered):
        # What an upgrade broke does not keep a better one away: then those that answer are asked.
        lenient = ["-e", "upgrade_check_strict=false"] if (root / _UNDER_WAY).exists() else []
        _play({**props, "name": "before-upgrade", "playbook": "before_upgrade.yml"}, *lenient)
        write_private(root / _UNDER_WAY, programs.name)
    _play(props)
    write_private(paths.made, paths.inventory(props["name"]).read_text())
    write_private(root / _VERSION, offered)
    write_private(root / _PROGRAMS, programs.name)
    (root / _UNDER_WAY).unlink(missing_ok=True)


def _offered() -> str:
    """Return this checkout's version of Kubernetes."""
    versions = json.loads((artifacts.directory() / "versions.json").read_text())
    return str(versions["kube-apiserver"])


def _programs(root: Path) -> str | None:
    """Return with which programs the last site.yml came through; older stacks do not say so."""
    record = root / _PROGRAMS
    return record.read_text() if record.exists() else None


def _answers_soon(cluster: Cluster, root: Path) -> bool:
    """Whether a control plane answers; one that would be upgraded has a while until it does."""
    waits = _programs(root) not in {None, artifacts.directory().name}
    deadline = time.monotonic() + (_PATIENCE if waits else 0)
    while not (answers := cluster.answers()) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return answers


def _made_with_others(cluster: Cluster, root: Path, offered: str) -> bool:
    """Whether a running control plane was made with other programs than this checkout has.

    Args:
        cluster: The one that runs.
        root: The stack's folder.
        offered: This checkout's version of Kubernetes.
    """
    if (programs := _programs(root)) is not None:
        return programs != artifacts.directory().name
    running = json.loads(cluster.kubectl("get", "--raw=/version"))["gitVersion"]
    return bool(running != offered)


def _check_step(root: Path, offered: str) -> None:
    """Refuse a version that what is stored may not be taken to: nobody answers who could say more.

    Args:
        root: The stack's folder; where no site.yml came through, nothing is stored.
        offered: The version.

    Raises:
        FleetfootError: It is older, or more than a minor version on.
    """
    if not (root / _VERSION).exists():
        return
    before = (root / _VERSION).read_text()
    old, new = (
        [int(part) for part in _NUMBER.findall(version)[:3]] for version in (before, offered)
    )
    if new < old or new[0] != old[0] or new[1] > old[1] + 1:
        raise FleetfootError(
            f"the control plane was Kubernetes {before}, does not answer, and would become"
            f" {offered}: older, or more than one minor version on",
            "stored objects could become unreadable, so no playbook was run",
            f"bring it up with the version of this project that has {before}, then upgrade one"
            " minor version at a time",
        )


def _whole(value: Any) -> Any:
    """Undo what Pulumi's wire format does to order, and to whole numbers: it knows only floats."""
    if isinstance(value, dict):
        return {key: _whole(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
