"""House rules of roles: one shape, specs that agree with defaults, no knowledge of groups."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
ROLES = sorted(path.parent.name for path in (PROJECT / "roles").glob("*/tasks"))
STAGES = ["preflight", "install", "configure", "run"]
# What the argument spec checks is all that can be wrong with these.
NOTHING_TO_COMPARE = {"host_programs", "kubeconfig"}
# It adds the archive that it installs from.
CONFIGURES_FIRST = {"host_packages"}
# Roles whose data names settings of the machine: taking one away must be possible, too.
DATA = {"kernel_writeback"}
# Results that other roles' handlers and group_vars ask for (docs/adr/0003-roles.md).
PUBLIC_RESULTS = {"etcd_backup_ready", "system_service_start"}
GROUPS = (
    "apiserver_offline",
    "apiserver_online",
    "dns",
    "etcd",
    "etcd_events",
    "kube_apiserver",
    "kube_control",
    "load_balancer",
    "registry",
    "workers",
)


def load(role: str, path: str) -> Any:
    file = PROJECT / "roles" / role / path
    return yaml.safe_load(file.read_text()) if file.exists() else None


def sources(role: str) -> list[Path]:
    """Everything of the role that Ansible evaluates."""
    folder = PROJECT / "roles" / role
    kinds = ("tasks", "handlers", "templates", "defaults", "vars")
    return [path for kind in kinds for path in (folder / kind).rglob("*") if path.is_file()]


def tasks_of(items: Any) -> list[dict[str, Any]]:
    found = []
    for task in items or []:
        found.append(task)
        for part in ("block", "rescue", "always"):
            found += tasks_of(task.get(part))
    return found


@pytest.mark.parametrize("role", ROLES)
def test_specs_and_defaults_agree(role: str) -> None:
    entries = load(role, "meta/argument_specs.yml")["argument_specs"].values()
    options = {name: spec for entry in entries for name, spec in entry.get("options", {}).items()}
    specified = {name: spec["default"] for name, spec in options.items() if "default" in spec}
    assert specified == (load(role, "defaults/main.yml") or {})
    vague = [n for n, spec in options.items() if not (spec.get("required") or "default" in spec)]
    assert not vague, "neither required nor with a default"


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_roles_name(role: str) -> None:
    entries = load(role, "meta/argument_specs.yml")["argument_specs"]
    names = {name for entry in entries.values() for name in entry.get("options") or {}}
    assert not [name for name in names if not name.startswith(f"{role}_")]
    assert not [n for n in load(role, "vars/main.yml") or {} if not n.startswith(f"__{role}_")]


@pytest.mark.parametrize("role", ROLES)
def test_registered_results_are_private(role: str) -> None:
    for path in (PROJECT / "roles" / role / "tasks").rglob("*.yml"):
        for task in tasks_of(yaml.safe_load(path.read_text())):
            name = task.get("register", f"__{role}_")
            assert name.startswith(f"__{role}_") or name in PUBLIC_RESULTS, f"{path.name}: {name}"


@pytest.mark.parametrize("role", ROLES)
def test_main_is_a_table_of_contents(role: str) -> None:
    tasks = load(role, "tasks/main.yml")
    files = [task["ansible.builtin.import_tasks"] for task in tasks]
    stages = [file.removesuffix(".yml") for file in files]
    order = [stage for stage in STAGES if stage in stages]
    if role in CONFIGURES_FIRST:
        order[1:3] = ["configure", "install"]
    assert stages == order
    for task, stage in zip(tasks, stages, strict=True):
        assert task["tags"] == [role, f"{role}_{stage}"]
        assert task["name"] == stage.capitalize()
    if role not in NOTHING_TO_COMPARE:
        assert stages[0] == "preflight"


@pytest.mark.parametrize("role", ROLES)
def test_preflight_says_what_follows_and_changes_nothing(role: str) -> None:
    for task in tasks_of(load(role, "tasks/preflight.yml")):
        check = task.get("ansible.builtin.assert")
        if check is not None:
            assert len(check["fail_msg"].split()) >= 10, f"{task['name']}: too short to help"
            assert check.get("quiet") is True
        else:
            reads = {
                "ansible.builtin.setup",
                "ansible.builtin.slurp",
                "ansible.builtin.command",
                "ansible.builtin.include_vars",
                "community.crypto.openssl_privatekey_info",
                "community.crypto.x509_certificate_info",
                "ansible.builtin.debug",
                *(["pki_leaves"] if task.get("check_mode") is True else []),
            }
            assert reads & set(task), f"{task['name']}: preflight only looks"
            assert task.get("changed_when", False) is False


@pytest.mark.parametrize("role", ROLES)
def test_handlers_are_named_once(role: str) -> None:
    names = [handler.get("name") for handler in load(role, "handlers/main.yml") or []]
    assert None not in names
    assert len(set(names)) == len(names)


def test_handlers_of_different_roles_differ() -> None:
    """Handlers of one play share a name space: the last one of a name would win."""
    owners: dict[str, str] = {}
    for role in ROLES:
        for handler in load(role, "handlers/main.yml") or []:
            assert owners.setdefault(handler["name"], role) == role, handler["name"]


@pytest.mark.parametrize("role", ROLES)
def test_no_inventory_group_is_named(role: str) -> None:
    for path in sources(role):
        text = path.read_text()
        for word in ("groups[", "groups.", "group_names", "hostvars"):
            assert word not in text, f"{path.name} uses {word}"


@pytest.mark.parametrize("role", ROLES)
def test_no_shortcut(role: str) -> None:
    for path in sources(role):
        text = path.read_text()
        for word in ("0777", "StrictHostKeyChecking=no", "validate_certs: false", "lineinfile"):
            assert word not in text, f"{path.name} uses {word}"


@pytest.mark.parametrize("role", sorted(DATA))
def test_data_roles_have_an_absent_state(role: str) -> None:
    text = (PROJECT / "roles" / role / "meta/argument_specs.yml").read_text()
    assert "C(absent)" in text
    assert "absent" in (PROJECT / "roles" / role / "vars/main.yml").read_text()


SCENARIOS = sorted((PROJECT / "roles").glob("*/molecule/*"))


@pytest.mark.parametrize("role", ROLES)
def test_has_a_default_scenario(role: str) -> None:
    assert PROJECT / "roles" / role / "molecule/default" in SCENARIOS


@pytest.mark.parametrize(
    "folder", SCENARIOS, ids=lambda path: f"{path.parents[1].name}-{path.name}"
)
def test_scenario(folder: Path) -> None:
    role = folder.parents[1].name
    assert (folder / "molecule.yml").exists()
    assert role in (folder / "converge.yml").read_text()
    tests = list(folder.glob("tests/test_*.py"))
    assert tests
    assert any(re.search(r"^def test_", path.read_text(), re.MULTILINE) for path in tests)


@pytest.mark.parametrize("role", ROLES)
def test_metadata(role: str) -> None:
    info = load(role, "meta/main.yml")["galaxy_info"]
    assert info["role_name"] == role
    assert info["license"] == "Apache-2.0"


def test_readmes_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(PROJECT / "tools/role_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_playbooks_are_lists_of_roles() -> None:
    for path in sorted((PROJECT / "playbooks").glob("*.yml")):
        for play in yaml.safe_load(path.read_text()):
            told = f"{path.name}: {play['name']}"
            assert not {"pre_tasks", "post_tasks"} & set(play), told
            for task in play.get("tasks", []):
                # Which hosts the next plays are for is the playbook's own business.
                stage = task.get("ansible.builtin.import_role", {}).get("tasks_from")
                assert "ansible.builtin.group_by" in task or stage == "preflight", told


@pytest.mark.parametrize("role", ROLES)
def test_switches_may_be_given_on_the_command_line(role: str) -> None:
    """There `-e switch=false` is text, which no conditional takes and a template takes for true."""
    switches = {
        name
        for entry in (load(role, "meta/argument_specs.yml") or {})["argument_specs"].values()
        for name, option in (entry.get("options") or {}).items()
        if option.get("type") == "bool"
    }
    evaluated = re.compile(
        rf"\b({'|'.join(switches)})\b(?! \| bool)(?!\S*\s+(is|to)\b)" if switches else r"(?!)"
    )
    for path in sources(role):
        if path.parent.name == "defaults":
            continue
        text = re.sub(r"(fail_)?msg: >-\n(\s+.*\n)+?(?=\s*\S+:)", "", path.read_text())
        assert not evaluated.search(text), f"{path.name}: {evaluated.search(text)}"
