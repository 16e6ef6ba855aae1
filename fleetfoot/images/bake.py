"""Apply the roles to an image's tree, at the host's speed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from fleetfoot.errors import FleetfootError
from fleetfoot.paths import PROJECT
from fleetfoot.shell import FAMILY

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleetfoot.images.definition import Definition

__all__ = ["bake"]

_TASK = re.compile(r"TASK \[(\S+) : ")
# Mounts are made in a mount namespace of the build's own, processes run in a PID namespace of its
# own: both are gone when the build is, however it ends.
_ENTER = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$1/run"
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
mount -t proc proc "$1/proc"
mount --rbind --make-rslave /dev "$1/dev"
mount -t sysfs -o ro sysfs "$1/sys"
shift
exec "$@"
"""


def bake(
    definition: Definition,
    tree: Path,
    *,
    work: Path,
    artifacts: Path,
    progress: Callable[[str], None],
) -> None:
    """Run playbooks/bake.yml on `tree` by the chroot connection.

    Args:
        definition: The image.
        tree: The image's root folder.
        work: A folder for the inventory.
        artifacts: Folder of the built node software.
        progress: Takes a line for each role.

    Raises:
        FleetfootError: A task failed; the message carries Ansible's words.
    """
    inventory = work / "inventory.yml"
    host = {
        "ansible_connection": "community.general.chroot",
        "ansible_host": str(tree),
        "ansible_python_interpreter": "/usr/bin/python3",
        "node_software_dir": str(artifacts),
    }
    hosts = {"hosts": {definition.name: host}}
    inventory.write_text(yaml.safe_dump({"all": {"children": {f"image_{definition.name}": hosts}}}))
    argv = [*FAMILY, "sh", "-c", _ENTER, "sh", str(tree)]
    argv += [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory)]
    argv += [str(PROJECT / "playbooks/bake.yml")]
    _follow(argv, definition.name, progress)


def _follow(argv: list[str], name: str, progress: Callable[[str], None]) -> None:
    said: list[str] = []
    role = ""
    with subprocess.Popen(
        argv, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            said.append(line)
            found = _TASK.match(line)
            if found and found[1] != role:
                role = found[1]
                progress(f"{name}: applying role {role}")
    if process.returncode:
        raise FleetfootError(
            f"baking the image {name} failed:\n{''.join(said[-40:]).strip()}",
            "the image is not built",
            "mend the role that failed and run the command again",
        )
