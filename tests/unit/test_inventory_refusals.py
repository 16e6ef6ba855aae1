"""What an inventory says wrong is refused: roles are told what stands on machines by group_vars."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.unit.programs import ansible

if TYPE_CHECKING:
    from collections.abc import Callable

PROJECT = Path(__file__).parents[2]
SAMPLE = yaml.safe_load((PROJECT / "inventory/samples/ha/hosts.yml").read_text())
Children = dict[str, Any]
# Preflights that look at nothing but variables, as playbooks/preflight.yml has them.
PREFLIGHTS = {
    "etcd:etcd_events": "etcd",
    "kube_apiserver": "kube_apiserver",
    "load_balancer": "load_balancer",
    "kube_control": "kube_controller_manager",
}


def front_end(port: int) -> Callable[[Children], None]:
    def change(every: Children) -> None:
        every["vars"]["fleetfoot_api_ports"] = {"offline": port}
        every["children"]["load_balancer"]["hosts"] = {"control-0": None}

    return change


def etcd_port(every: Children) -> None:
    every["children"]["etcd"]["vars"] = {"etcd_client_port": 7443}


def one_other_peer_port(every: Children) -> None:
    every["children"]["etcd"]["hosts"]["control-1"] = {"etcd_peer_port": 2390}


def two_members(every: Children) -> None:
    del every["children"]["etcd"]["hosts"]["control-2"]


def in_both_databases(every: Children) -> None:
    every["children"]["etcd_events"]["hosts"]["control-0"] = None
    del every["children"]["etcd_events"]["hosts"]["control-0-events"]


def misspelt_group(every: Children) -> None:
    groups = every["children"]["kube_apiserver"]["children"]
    groups["apiserver_ofline"] = groups.pop("apiserver_offline")


def machine_of_pods(every: Children) -> None:
    every["hosts"]["worker-2"]["ansible_host"] = "10.90.3.4"


def different_services(every: Children) -> None:
    every["hosts"]["control-1"]["fleetfoot_service_cidr"] = "10.80.0.0/16"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (front_end(8443), ""),
        (front_end(2380), "etcd_taken_ports"),
        (front_end(9153), "load_balancer_taken_ports"),
        (etcd_port, "etcd_taken_ports"),
        (one_other_peer_port, "etcd_peer_port"),
        (two_members, "etcd_members has 2 members"),
        (in_both_databases, "etcd_memberships"),
        (misspelt_group, "apiserver_ofline"),
        (machine_of_pods, "10.90.3.4"),
        (different_services, "service_cidr"),
    ],
)
def test_inventory(tmp_path: Path, change: Callable[[Children], None], says: str) -> None:
    inventory = copy.deepcopy(SAMPLE)
    every = inventory["all"]
    places = {"fleetfoot_artifacts_dir": str(tmp_path), "fleetfoot_state_dir": str(tmp_path)}
    every["vars"] |= {"ansible_connection": "local", **places}
    change(every)
    (tmp_path / "hosts.json").write_text(json.dumps(inventory))
    (tmp_path / "pki/service-account").mkdir(parents=True)
    (tmp_path / "pki/service-account/public.pem").touch()
    (tmp_path / "group_vars").symlink_to(PROJECT / "playbooks/group_vars")
    plays = [
        {
            "name": role,
            "hosts": hosts,
            "gather_facts": False,
            "any_errors_fatal": True,
            "tasks": [{"ansible.builtin.import_role": {"name": role, "tasks_from": "preflight"}}],
        }
        for hosts, role in PREFLIGHTS.items()
    ]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(plays))
    files = (str(tmp_path / "hosts.json"), str(tmp_path / "play.yml"))
    done = ansible("ansible-playbook", "-i", *files)
    assert (done.returncode == 0) == (not says), done.stdout[-3000:] + done.stderr[-3000:]
    assert says in done.stdout
