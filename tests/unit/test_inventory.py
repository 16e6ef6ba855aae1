"""Inventories: the plug-in on a checkpoint that our engine wrote, and the hand-written samples."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleetfoot.engine import Engine
from fleetfoot.stack.config import load
from fleetfoot.stack.fields import GROUPS
from fleetfoot.stack.inventory import render
from tests.unit.programs import ansible

PROJECT = Path(__file__).parents[2]
PLAYBOOKS = sorted(path.name for path in (PROJECT / "playbooks").glob("*.yml"))
CONFIG = {
    "pools": [
        {
            "name": "control",
            "backend": "nspawn",
            "image": "control",
            "count": 1,
            "memory": "1GiB",
            "groups": [group for group in GROUPS if group != "workers"],
            "volumes": ["/var/lib/etcd", "/var/lib/etcd-events"],
        },
        {
            "name": "worker",
            "backend": "qemu",
            "image": "serverless",
            "count": 2,
            "memory": "1GiB",
            "groups": ["workers"],
        },
    ]
}
ADDRESSES = {"control-1": "10.1.0.2", "worker-1": "10.1.0.3", "worker-2": "10.1.0.4"}
PROGRAM = """
import json, os, pulumi
pulumi.export("inventory", json.loads(os.environ["INVENTORY_OF_TEST"]))
"""


def ansible_inventory(source: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    return ansible("ansible-inventory", "-i", source, *options, **env)


def listed(source: str, **env: str) -> dict[str, Any]:
    done = ansible_inventory(source, "--list", **env)
    assert done.returncode == 0, done.stderr
    # What comes from state is data: Ansible marks it as never to be taken for a template.
    found: dict[str, Any] = json.loads(
        done.stdout, object_hook=lambda item: item.get("__ansible_unsafe", item)
    )
    return found


@pytest.fixture(scope="module")
def rendered() -> dict[str, Any]:
    return render("mine", load(CONFIG, host_memory_mib=64 * 1024), ADDRESSES, "10.1.0.1")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, rendered: dict[str, Any]) -> Path:
    """A checkout whose stack `mine` was made by the embedded engine, with secrets in its state."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "Pulumi.yaml").write_text("name: fleetfoot\nruntime: python\n")
    (folder / "Pulumi.mine.yaml").write_text("config: {}\n")
    (folder / "__main__.py").write_text(PROGRAM)
    (folder / ".fleetfoot/state").mkdir(parents=True)
    (folder / ".fleetfoot/passphrase").write_text("geheim\n")
    engine = Engine(
        folder,
        "mine",
        backend_url=f"file://{folder / '.fleetfoot/state'}",
        passphrase="geheim",
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("INVENTORY_OF_TEST", json.dumps(rendered))
        assert engine.up().ok
    return folder


def test_plugin_gives_what_the_stack_put_out(checkout: Path, rendered: dict[str, Any]) -> None:
    found = listed("inventory/fleetfoot.yml", STACK="mine", FLEETFOOT_PROJECT=str(checkout))
    assert found["workers"]["hosts"] == ["worker-1", "worker-2"]
    assert found["etcd"]["hosts"] == ["control-1"]
    for name, address in ADDRESSES.items():
        variables = found["_meta"]["hostvars"][name]
        assert variables["ansible_host"] == address
        assert variables["fleetfoot_zone"] == "mine.fleetfoot.internal"
        given = {**rendered["all"]["vars"], **rendered["all"]["hosts"][name]}
        assert given.items() <= variables.items()
    assert found["apiserver_offline"]["hosts"] == ["control-1-offline"]
    offline = found["_meta"]["hostvars"]["control-1-offline"]
    assert offline["ansible_host"] == ADDRESSES["control-1"]
    assert offline["kube_apiserver_max_requests"] == 100


def limits(rendered: dict[str, Any], group: str) -> dict[str, Any]:
    children = rendered["all"]["children"]["kube_apiserver"]["children"]
    found: dict[str, Any] = children[f"apiserver_{group}"]["vars"]
    return found


def test_one_apiserver_sends_nobody_away_and_two_do(rendered: dict[str, Any]) -> None:
    assert limits(rendered, "online")["kube_apiserver_goaway_chance"] == 0
    both = json.loads(json.dumps(CONFIG))
    offline = {**both["pools"][0], "name": "batch", "count": 2, "groups": ["apiserver_offline"]}
    both["pools"].append(offline)
    addresses = {**ADDRESSES, "batch-1": "10.1.0.8", "batch-2": "10.1.0.9"}
    found = render("mine", load(both, host_memory_mib=64 * 1024), addresses, "10.1.0.1")
    assert limits(found, "online")["kube_apiserver_goaway_chance"] == 0
    assert limits(found, "offline")["kube_apiserver_goaway_chance"] == 0.001


def test_online_uses_memory_up_to_its_budget_or_half_its_machine(rendered: dict[str, Any]) -> None:
    def target(found: dict[str, Any], group: str) -> Any:
        children = found["all"]["children"]["kube_apiserver"]["children"]
        return [host["kube_apiserver_memory_target"] for host in children[group]["hosts"].values()]

    assert limits(rendered, "online")["kube_apiserver_gc_percent"] == 800
    assert limits(rendered, "offline")["kube_apiserver_gc_percent"] == 100
    # 0.9 of half of 1 GiB, which both groups share.
    assert target(rendered, "apiserver_online") == ["230MiB"]
    offline = {"offline": {"memory": "512MiB"}}
    bounded = load({**CONFIG, "apiservers": offline}, host_memory_mib=64 * 1024)
    alone = render("mine", bounded, ADDRESSES, "10.1.0.1")
    assert target(alone, "apiserver_online") == ["460MiB"]
    budget = {"online": {"memory": "1000MiB", "gc_percent": 50}}
    config = load({**CONFIG, "apiservers": budget}, host_memory_mib=64 * 1024)
    found = render("mine", config, ADDRESSES, "10.1.0.1")
    assert limits(found, "online")["kube_apiserver_gc_percent"] == 50
    assert target(found, "apiserver_online") == ["900MiB"]


def test_each_group_has_its_own_watch_cache_goaway_and_audit() -> None:
    wanted = {"watch_cache": {"pods": 0}, "goaway_chance": 0.01, "audit": "all"}
    config = load({**CONFIG, "apiservers": {"offline": wanted}}, host_memory_mib=64 * 1024)
    found = render("mine", config, ADDRESSES, "10.1.0.1")
    names = ("watch_cache_sizes", "goaway_chance", "audit_reads")
    online, offline = (
        [limits(found, group)[f"kube_apiserver_{name}"] for name in names]
        for group in ("online", "offline")
    )
    assert online == [{}, 0, False]
    assert offline == [{"pods": 0}, 0.01, True]


def test_graph_shows_groups(checkout: Path) -> None:
    done = ansible_inventory(
        "inventory/fleetfoot.yml", "--graph", STACK="mine", FLEETFOOT_PROJECT=str(checkout)
    )
    assert "|--@kube_apiserver:" in done.stdout
    assert "|  |--worker-2" in done.stdout


@pytest.mark.parametrize("stack", ["other", "mine"])
def test_absent_stack_is_told_with_consequence_and_fix(
    checkout: Path, tmp_path: Path, stack: str
) -> None:
    """A stack that is not in the state, and a checkout in which nothing was ever made."""
    (tmp_path / "Pulumi.yaml").write_text("name: fleetfoot\nruntime: python\n")
    project = checkout if stack == "other" else tmp_path
    done = ansible_inventory(
        "inventory/fleetfoot.yml",
        "--graph",
        STACK=stack,
        FLEETFOOT_PROJECT=str(project),
    )
    told = " ".join(done.stderr.split())
    assert f"stack: there is no running stack '{stack}'" in told
    assert "the inventory is empty, so a playbook would do nothing" in told
    assert f"run `make up STACK={stack}`" in told
    assert done.returncode != 0


def test_single_sample() -> None:
    found = listed("inventory/samples/single")
    groups = ["apiserver_online", "dns", "etcd", "kube_control", "load_balancer", "registry"]
    assert all(found[group]["hosts"] == ["control-0"] for group in groups)
    assert found["apiserver_offline"]["hosts"] == ["control-0-offline"]
    assert found["etcd_events"]["hosts"] == ["control-0-events"]


def test_ha_sample() -> None:
    found = listed("inventory/samples/ha")
    assert len(found["etcd"]["hosts"]) == len(found["etcd_events"]["hosts"]) == 3
    online, offline = (found[f"apiserver_{name}"]["hosts"] for name in ("online", "offline"))
    assert len(online) == len(offline) == 2
    assert not {*online} & {*offline}, "an alias stands for a machine's second apiserver"


@pytest.mark.parametrize("sample", ["single", "ha"])
def test_aliases_in_samples_share_what_their_machine_is_given(sample: str, tmp_path: Path) -> None:
    text = (PROJECT / f"inventory/samples/{sample}/hosts.yml").read_text()
    moved = text.replace(
        "control-0 {ansible_host: 10.97.0.2}", "control-0 {ansible_host: 10.9.9.9}"
    )
    (tmp_path / "hosts.yml").write_text(moved)
    found = listed(str(tmp_path))["_meta"]["hostvars"]
    at = {name: facts["ansible_host"] for name, facts in found.items()}
    aliases = {name: name.rpartition("-")[0] for name in at if name.count("-") > 1}
    assert at["control-0-events"] == "10.9.9.9"
    assert {alias: at[alias] for alias in aliases} == {a: at[of] for a, of in aliases.items()}


def test_ha_sample_gives_each_group_its_front_end() -> None:
    """What group_vars makes of the inventory, asked of Ansible itself."""
    done = ansible(
        "ansible",
        "front-0",
        *("-i", "inventory/samples/ha", "--playbook-dir", "playbooks", "-m", "debug"),
        *("-a", "var=load_balancer_apiservers"),
        ANSIBLE_LOAD_CALLBACK_PLUGINS="1",
        ANSIBLE_STDOUT_CALLBACK="ansible.builtin.default",
        ANSIBLE_CALLBACK_RESULT_FORMAT="json",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.partition("=>")[2].lstrip()
    fronts = json.JSONDecoder().raw_decode(said)[0]["load_balancer_apiservers"]
    assert {front["name"]: front["port"] for front in fronts} == {"online": 6443, "offline": 6444}
    assert [server["port"] for server in fronts[1]["servers"]] == [7444, 7444]
    assert [front["authority"] for front in fronts] == ["kubernetes", "kubernetes-offline"]


def told(folder: Path, inventory: dict[str, Any], hosts: str, wanted: str) -> dict[str, Any]:
    """What an expression is on hosts of an inventory, by group_vars; asked of Ansible itself."""
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
    argv = [hosts, "-i", str(folder / "hosts.yml"), "-c", "local"]
    argv += ["--playbook-dir", "playbooks", "--tree", str(folder / "said"), "-m", "debug", "-a"]
    done = ansible("ansible", *argv, f"msg={{{{ {wanted} }}}}")
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: json.loads(path.read_text())["msg"] for path in (folder / "said").iterdir()}


def ha_sample() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PROJECT / "inventory/samples/ha/hosts.yml").read_text())
    return found


def test_submitters_are_signed_by_the_authority_that_offline_has(tmp_path: Path) -> None:
    sample = ha_sample()
    sample["all"]["vars"]["fleetfoot_state_dir"] = str(tmp_path)
    sides = sample["all"]["children"]["kube_apiserver"]["children"]
    offline = sides["apiserver_offline"]["hosts"]
    for name, facts in offline.items():
        offline[name] = {**facts, "kube_apiserver_client_authority": "batch"}
    names = "kube_bootstrap_kubeconfigs | map(attribute='name') | list"
    signers = "kube_bootstrap_kubeconfigs | map(attribute='authority', default='') | list"
    said = told(tmp_path, sample, "control-0", f"[{names}, {signers}, pki_authorities]")
    people, signed_by, authorities = said["control-0"]
    assert people == ["operator", "break-glass", "offline"]
    assert signed_by == ["", "", "batch"]
    assert "batch" in authorities


@pytest.fixture(scope="module")
def retiring(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """What role retire is told about machines of a sample, some of which are retired."""
    sample = ha_sample()
    sample["all"]["children"]["retired"]["hosts"] = {
        "gone": {"ansible_host": "10.97.0.9"},
        "worker-0": None,
        "once-control": {"ansible_host": sample["all"]["hosts"]["worker-1"]["ansible_host"]},
        "control-1": None,  # its groups still say otherwise
    }
    hosts = "gone:worker-0:once-control:control-0:control-1:front-0"
    wanted = "{'known': retire_known, 'wanted': retire_wanted, 'secrets': retire_secrets}"
    return told(tmp_path_factory.mktemp("retiring"), sample, hosts, wanted)


def test_a_retired_host_keeps_neither_services_nor_keys(
    retiring: dict[str, dict[str, list[str]]],
) -> None:
    gone = retiring["gone"]
    assert gone["wanted"] == []
    assert {"/etc/bird/key.conf", "/etc/kubernetes/controller-manager"} <= {*gone["secrets"]}
    assert "bird.service" in gone["known"]


@pytest.mark.parametrize("name", ["worker-0", "once-control"])
def test_a_retired_host_that_is_a_node_keeps_its_routes(
    retiring: dict[str, dict[str, list[str]]], name: str
) -> None:
    assert retiring[name]["wanted"] == ["bird.service"]
    others = [path for path in retiring["gone"]["secrets"] if path != "/etc/bird/key.conf"]
    assert retiring[name]["secrets"] == others


@pytest.mark.parametrize(("name", "calls"), [("control-0", True), ("front-0", False)])
def test_those_that_call_pods_have_routes(
    retiring: dict[str, dict[str, list[str]]], name: str, calls: bool
) -> None:
    assert ("bird.service" in retiring[name]["wanted"]) == calls


@pytest.mark.parametrize("name", ["control-0", "control-1", "front-0"])
def test_a_machine_that_goes_on_keeps_its_keys(
    retiring: dict[str, dict[str, list[str]]], name: str
) -> None:
    assert retiring[name]["secrets"] == []


def defaults(role: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(
        (PROJECT / f"roles/{role}/defaults/main.yml").read_text()
    )
    return found


LOSSES = {"container_runtime_durable", "kernel_writeback_mounts"}
LOSSES |= {"boot_order_journal", "boot_order_journal_max", "boot_order_stop_timeout"}
FAST = {
    name: value
    for role in ("boot_order", "container_runtime", "kernel_writeback")
    for name, value in defaults(role).items()
    if name in LOSSES
}
KEPT = {
    "boot_order_journal": "auto",
    "boot_order_journal_max": "",
    "boot_order_stop_timeout": "90s",
    "container_runtime_durable": True,
    "kernel_writeback_mounts": [],
}


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What group_vars tells roles about hosts of every kind, asked of Ansible itself."""
    workers = {
        "of-a-pool": {"fleetfoot_pool": "worker"},
        "my-own": {},
        "my-own-fast": {"fleetfoot_replaced": True},
        "my-own-chosen": {"boot_order_journal": "persistent"},
    }
    groups = {"workers": workers, "image_serverless": {"serverless": {}}}
    groups["image_generic"] = {"generic": {}}
    folder = tmp_path_factory.mktemp("losses")
    tree = {"all": {"children": {name: {"hosts": hosts} for name, hosts in groups.items()}}}
    wanted = ", ".join(f"'{name}': {name}" for name in sorted(LOSSES))
    return told(folder, tree, "all", f"{{{wanted}}}")


@pytest.mark.parametrize("name", ["of-a-pool", "serverless", "my-own-fast"])
def test_machines_that_are_replaced_get_what_the_roles_default_to(
    losses: dict[str, dict[str, Any]], name: str
) -> None:
    assert losses[name] == FAST


def test_a_host_of_ones_own_loses_nothing(losses: dict[str, dict[str, Any]]) -> None:
    assert losses["my-own"] == KEPT
    assert losses["my-own-chosen"] == {**KEPT, "boot_order_journal": "persistent"}


def test_the_baseline_image_is_durable(losses: dict[str, dict[str, Any]]) -> None:
    assert losses["generic"]["container_runtime_durable"] is True


@pytest.mark.parametrize("playbook", PLAYBOOKS)
@pytest.mark.parametrize("sample", ["single", "ha"])
def test_playbooks_take_the_samples(sample: str, playbook: str) -> None:
    places = ("-i", f"inventory/samples/{sample}", f"playbooks/{playbook}")
    done = ansible("ansible-playbook", "--syntax-check", *places)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_etcd_has_its_own_quota() -> None:
    config = load({**CONFIG, "etcd": {"events_quota": "512MiB"}}, host_memory_mib=64 * 1024)
    found = render("mine", config, ADDRESSES, "10.1.0.1")["all"]["children"]
    quotas = [found[group]["vars"]["etcd_quota_bytes"] for group in ("etcd", "etcd_events")]
    assert quotas == [2 << 30, 512 << 20]
