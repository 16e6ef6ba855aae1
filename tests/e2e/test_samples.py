"""A hand-written inventory on a Debian 13 machine that nothing was prepared on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from fleetfoot.machines.network import NetworkSpec
from fleetfoot.paths import StackPaths
from fleetfoot.stack.inventory import zone
from tests.e2e.stacks import PROJECT, run
from tests.molecule import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.long]

STACK = "sample-test"
# In the image so that tests of roles are quick; on a host of one's own the roles install them.
ABSENT = ["docker-registry", "haproxy", "python3-cryptography"]
# Folders of /etc.
CONFIGURATION = ["bird", "coredns", "etcd", "etcd-events", "haproxy", "kubernetes"]
# One of each.
KEYS = {
    "/etc/bird/key.conf",
    "/etc/etcd/pki/peer.key",
    "/etc/haproxy/registry.key",
    "/etc/kubernetes/apiserver/encryption.yaml",
    "/etc/kubernetes/controller-manager/ca.key",
    "/etc/kubernetes/pki/admin.key",
}


@pytest.fixture(scope="module")
def facts() -> Iterator[dict[str, str]]:
    """The machine, in a range that no role's test has."""
    spec = NetworkSpec(STACK, "10.99.60.0/24", "10.99.255.240/30", zone(STACK))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "_network", lambda _stack: spec)
        machine.down(STACK)  # what a killed run left
        try:
            yield machine.up(STACK)
        finally:
            machine.down(STACK)


@pytest.fixture(scope="module")
def inventory(facts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with what its comments ask for: an address, names, a key."""
    sample: dict[str, Any] = yaml.safe_load(
        (PROJECT / "inventory/samples/single/hosts.yml").read_text()
    )
    paths = StackPaths(STACK)
    sample["all"]["hosts"]["control-0"]["ansible_host"] = facts["address"]
    variables = sample["all"]["vars"]
    variables["fleetfoot_zone"] = facts["zone"]
    variables["fleetfoot_resolver"] = facts["resolver"]
    variables["fleetfoot_state_dir"] = facts["state_dir"]
    variables["ansible_ssh_private_key_file"] = str(paths.ssh_key)
    variables["ansible_ssh_common_args"] += f" -o UserKnownHostsFile={paths.known_hosts}"
    folder = tmp_path_factory.mktemp("sample")
    (folder / "hosts.yml").write_text(yaml.safe_dump(sample))
    return folder


def play(inventory: Path, playbook: str) -> dict[str, int]:
    """Run a playbook; return what its recap counts for the machine."""
    said = run("ansible-playbook", "-i", inventory, f"playbooks/{playbook}")
    recap = re.findall(r"^control-0\s*: (ok=.*)$", said, re.MULTILINE)
    assert len(recap) == 1, said
    return {key: int(count) for key, count in re.findall(r"(\w+)=(\d+)", recap[0])}


@pytest.fixture(scope="module")
def cluster(inventory: Path) -> Path:
    """The control plane as site.yml makes it of the sample."""
    purge = "apt-get purge --yes --quiet " + " ".join(ABSENT)
    run("ansible", "control-0", "-i", inventory, "-m", "ansible.builtin.command", "-a", purge)
    play(inventory, "authorities.yml")
    assert play(inventory, "site.yml")["changed"] > 0
    return inventory


@pytest.mark.usefixtures("cluster")
def test_operators_kubeconfig_reaches_a_ready_apiserver(facts: dict[str, str]) -> None:
    kubectl = Path(facts["artifacts_dir"]) / "kubectl"
    kubeconfig = Path(facts["state_dir"]) / "kubeconfig"
    assert run(kubectl, f"--kubeconfig={kubeconfig}", "get", "--raw", "/readyz") == "ok"


def test_second_run_changes_nothing(cluster: Path) -> None:
    assert play(cluster, "site.yml")["changed"] == 0


def ask(inventory: Path, command: str) -> list[str]:
    """Return the lines that a command says on the machine."""
    module = ("-m", "ansible.builtin.command", "-a", command)
    return run("ansible", "control-0", "-i", inventory, *module).splitlines()


def running(inventory: Path) -> set[str]:
    """Return the units of the control plane that run."""
    patterns = "bird* etcd* kube* haproxy@* coredns* docker-registry*"
    said = ask(inventory, f"systemctl list-units --plain --no-legend --state=running {patterns}")
    return {line.split()[0] for line in said if ".service" in line}


def secrets(inventory: Path) -> set[str]:
    """Return the files of the control plane with private keys, the key of Secrets or a password."""
    folders = " ".join(f"/etc/{name}" for name in CONFIGURATION)
    text = "PRIVATE KEY|^ *secret:|^password"
    said = ask(inventory, f"find {folders} -type f -exec grep -lE '{text}' {{}} ;")
    return {line for line in said if line.startswith("/etc/")}


def test_a_retired_host_does_nothing_more(cluster: Path, tmp_path: Path) -> None:
    sample: dict[str, Any] = yaml.safe_load((cluster / "hosts.yml").read_text())
    groups = sample["all"]["children"]
    for group in (*groups.values(), *groups["kube_apiserver"]["children"].values()):
        if "hosts" in group:
            group["hosts"] = {}
    groups["retired"]["hosts"] = {"control-0": None}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(sample))
    assert {"bird.service", "etcd.service", "kube-apiserver@online.service"} <= running(cluster)
    assert secrets(cluster) >= KEYS
    play(tmp_path, "site.yml")
    assert running(tmp_path) == set()
    assert secrets(tmp_path) == set()
    assert play(tmp_path, "site.yml")["changed"] == 0
