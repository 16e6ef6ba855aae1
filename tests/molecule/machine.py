"""The machine of a role test: a real Debian 13 system, started by the project's own code.

Molecule's create and destroy playbooks run this: `machine.py up`, `machine.py down`. The role's
folder names the stack, so tests of several roles may run at once; FLEETFOOT_MOLECULE_STACK names
another one, which whoever set it makes and removes (tests/roles/test_molecule.py).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from fleetfoot import artifacts
from fleetfoot.images import apt
from fleetfoot.machines.cgroups import Cgroup
from fleetfoot.machines.fleet import Fleet
from fleetfoot.machines.network import NetworkSpec
from fleetfoot.machines.spec import BootImage, MachineSpec
from fleetfoot.paths import PROJECT, StackPaths
from fleetfoot.shell import run
from fleetfoot.stack.bootimage import boot_image
from fleetfoot.stack.inventory import zone

NAME = "target"
SHARED = ("mol-control", "mol-node")
_SUITE = "trixie"
#: CPU weight of shared machines, as cgroup v1 and v2 call a quarter of what other stacks have.
_SHARES, _WEIGHT = 256, 25


def stack_of(role: str) -> str:
    """Return the stack of one role's test."""
    return f"mol-{role.replace('_', '-')}"


def up(stack: str) -> dict[str, str]:
    """Start the machine unless it runs; return what a test must know of it."""
    fleet = Fleet(_network(stack))
    fleet.create_network()
    machine = fleet.read(NAME)
    if machine is None or not machine.running:
        spec = MachineSpec(
            name=NAME,
            pool=NAME,
            backend="nspawn",
            image=BootImage(**boot_image("roletest")),
            cpus=2,
            memory=2048,
            disk=0,
            aliases=("api-online", "registry"),
        )
        machine = fleet.create(spec, {})
        if stack in SHARED:
            _make_room(stack)
        _give_archives(fleet.paths)
    return {
        "stack": stack,
        "zone": zone(stack),
        "resolver": fleet.network.spec.gateway,
        "address": machine.address,
        "state_dir": str(fleet.paths.root),
        "artifacts_dir": str(artifacts.directory()),
    }


def down(stack: str) -> None:
    """Remove the machine, its network and its keys."""
    fleet = Fleet(_network(stack))
    fleet.delete(NAME)
    fleet.delete_network()
    shutil.rmtree(fleet.paths.root, ignore_errors=True)


def describe(stack: str, facts: dict[str, str], folder: Path, instances: Path) -> None:
    """Write what Molecule needs to reach the machine, and what host_vars/target.yml reads."""
    paths = StackPaths(stack)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "machine.json").write_text(json.dumps(facts))
    shutil.copy(paths.known_hosts, folder / "known_hosts")
    instance = {"instance": NAME, "address": facts["address"], "user": "root", "port": "22"}
    instance["identity_file"] = str(paths.ssh_key)
    instances.write_text(json.dumps([instance]))  # JSON is YAML


def _network(stack: str) -> NetworkSpec:
    """A range of its own for each stack, out of one that no stack of a user has by default."""
    roles = sorted(path.name for path in (PROJECT / "roles").iterdir())
    number = [*SHARED, *map(stack_of, roles)].index(stack)
    return NetworkSpec(
        stack=stack,
        cidr=f"10.99.{number}.0/24",
        uplink=f"10.99.255.{4 * number}/30",
        zone=zone(stack),
    )


def _make_room(stack: str) -> None:
    """Let the machines of stacks, which are tested at the same time, come first."""
    group = Cgroup(stack, NAME)
    file, weight = ("cpu.weight", _WEIGHT) if group.unified else ("cpu.shares", _SHARES)
    (group.folders[0].parent / file).write_text(str(weight))


def _give_archives(paths: StackPaths) -> None:
    """Let the machine install packages from where the host does."""
    root = paths.machines / NAME / "root"
    given = paths.root / "archives"
    apt.write_package_manager_tree(given, suite=_SUITE)
    for source in (root / "etc/apt/sources.list.d").iterdir():
        source.unlink()
    run(["cp", "--recursive", f"{given / 'etc/apt'}/.", str(root / "etc/apt")])
    # As old as can be, so that tasks with cache_valid_time read the lists, which the image lacks.
    os.utime(root / "var/lib/apt/lists", (0, 0))


def main() -> None:
    """Do what a playbook asks for; Molecule's environment says for which role."""
    role = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]).name
    shared = os.environ.get("FLEETFOOT_MOLECULE_STACK", "")
    stack = shared or stack_of(role)
    if sys.argv[1:] == ["up"]:
        folder = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
        describe(stack, up(stack), folder, Path(os.environ["MOLECULE_INSTANCE_CONFIG"]))
    elif sys.argv[1:] == ["down"]:
        if not shared:
            down(stack)
    else:
        sys.exit("usage: machine.py up|down")


if __name__ == "__main__":
    main()
