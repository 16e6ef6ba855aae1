from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleetfoot.errors import FleetfootError
from fleetfoot.machines.spec import IDLE
from fleetfoot.stack.config import load

PROJECT = Path(__file__).parents[2]
DEFAULT = {
    key.removeprefix("fleetfoot:"): value
    for key, value in yaml.safe_load((PROJECT / "Pulumi.local.yaml").read_text())["config"].items()
}


def changed(path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(DEFAULT)
    *steps, last = path.split(".")
    at: Any = config
    for step in steps:
        at = at[int(step)] if step.isdigit() else at[step]
    at[int(last) if last.isdigit() else last] = value
    return config


def test_the_default_stack_is_good() -> None:
    config = load(DEFAULT)
    assert [pool.machine_names for pool in config.pools] == [
        ["control-1"],
        ["worker-1", "worker-2"],
    ]
    assert config.pools[1].memory == 2048


@pytest.mark.parametrize(
    ("path", "value", "field", "says"),
    [
        ("colour", "red", "fleetfoot:colour", "no such key"),
        ("pools.1.cpu", 2, r"fleetfoot:pools\[1\].cpu", "no such key"),
        ("pools.1.count", "2", r"fleetfoot:pools\[1\].count", "valid integer"),
        ("pools.1.memroy", "2GiB", r"fleetfoot:pools\[1\].memroy", "did you mean memory"),
        ("pools.1.count", -1, r"fleetfoot:pools\[1\].count", "greater than or equal to 0"),
        ("pools.1.count", 5000, r"fleetfoot:pools\[1\].count", "less than or equal to 200"),
        ("pools.1.memory", 2048, r"fleetfoot:pools\[1\].memory", "512MiB or 2GiB"),
        ("pools.1.memory", "-2GiB", r"fleetfoot:pools\[1\].memory", "no size"),
        ("pools.1.memory", "1MiB", r"fleetfoot:pools\[1\].memory", "greater than or equal to 256"),
        ("pools.1.cpus", 0, r"fleetfoot:pools\[1\].cpus", "greater than 0"),
        ("pools.1.disk", "1EiB", r"fleetfoot:pools\[1\].disk", "no size"),
        ("pools.1.name", "Worker_1", r"fleetfoot:pools\[1\].name", "no DNS label"),
        ("pools.1.name", "control", "fleetfoot:pools", "2 pools are named 'control'"),
        ("pools.1.backend", "aws", r"fleetfoot:pools\[1\].backend", "'qemu' or 'nspawn'"),
        ("pools.1.taints", ["x"], r"fleetfoot:pools\[1\].taints\[0\]", "NoSchedule"),
        ("pools.1.memory", "600GiB", "fleetfoot:pools", "host has .* lower count or memory"),
        ("pools.0.count", 0, "fleetfoot:pools", "no machine is in the group 'etcd'"),
        ("network.cidr", "10.89.0.1/24", "fleetfoot:network.cidr", "no IPv4 range"),
        ("network.cidr", "10.89.0.0/30", "fleetfoot:network.cidr", "room for 1 machines"),
        ("network.pods", "10.89.0.0/16", "fleetfoot:network", "overlaps"),
        ("pools.1.backend", "nspawn", r"fleetfoot:pools\[1\].backend", "write qemu"),
        ("pools.1.image", "control", r"fleetfoot:pools\[1\].image", "made for nspawn"),
        ("pools.1.image", "sample", r"fleetfoot:pools\[1\].image", "made for containers"),
        ("pools.1.image", "beos", r"fleetfoot:pools\[1\].image", "choose one of .*serverless"),
        ("pools.1.groups", ["workers", "etcd"], r"pools\[1\].groups", "a pool of its own"),
        ("pools.0.groups", ["kube_apiserver"], r"pools\[0\].groups", "write apiserver_online"),
        ("pools.0.volumes", ["/var/lib/etcd"], "fleetfoot:pools", "not have /var/lib/etcd-events"),
        ("pools.1.volumes", ["/data"], r"fleetfoot:pools\[1\].volumes", "nothing would be kept"),
        ("pools.1.labels", {"a b": "c"}, r"fleetfoot:pools\[1\].labels", "is no label"),
        ("pools.1.labels", {"a": 'b"c'}, r"fleetfoot:pools\[1\].labels", "is no label"),
        (
            "pools.1.labels",
            {"node-role.kubernetes.io/worker": ""},
            r"fleetfoot:pools\[1\].labels",
            "Kubernetes' own domain",
        ),
        ("pools.1.name", "w" * 60, r"fleetfoot:pools\[1\].name", "up to 53"),
        ("pools.0.count", 2, "fleetfoot:pools", "2 machines are in the group 'etcd'.* 1, 3 or 5"),
        ("apiservers", {"offline": {"memory": "1MiB"}}, "apiservers.offline.memory", "512"),
        ("apiservers", {"offline": {"weight": 0}}, "apiservers.offline.weight", "or idle"),
        ("apiservers", {"offline": {"goaway_chance": 0.5}}, "offline.goaway_chance", "0.02"),
        ("apiservers", {"online": {"gc_percent": 0}}, "apiservers.online.gc_percent", "20"),
        ("apiservers", {"online": {"audit": "None"}}, "apiservers.online.audit", "'changes' or"),
        ("apiservers", {"online": {"watch_cache": {"Pod": 1}}}, "watch_cache", "no resource"),
        ("apiservers", {"online": {"watch_cache": {"pods": -1}}}, "watch_cache.pods", "equal to 0"),
        ("apiservers", {"offline": {"cpus": 3}}, "apiservers.offline.cpus", "pool control has .2"),
        ("apiservers", {"online": {"memory": "4GiB"}}, "apiservers.online.memory", "3072 MiB"),
        ("apiservers", {"offline": {"cpus": 0.001}}, "apiservers.offline.cpus", "equal to 0.01"),
        (
            "apiservers",
            {"online": {"memory": "2GiB"}, "offline": {"memory": "2GiB"}},
            "fleetfoot:apiservers",
            "4096 MiB together, and it has 3072 MiB",
        ),
        ("etcd", {"quota": "16MiB"}, "fleetfoot:etcd.quota", "equal to 64"),
        ("etcd", {"events_quota": "9GiB"}, "fleetfoot:etcd.events_quota", "equal to 8192"),
        ("apiservers", {"batch": {}}, "fleetfoot:apiservers.batch", "no such key"),
        ("offline", {"namespaces": []}, "fleetfoot:offline.namespaces", "at least 1"),
        ("offline", {"namespaces": ["A b"]}, "fleetfoot:offline.namespaces", "no DNS label"),
        ("offline", {"namespaces": ["kube-system"]}, "offline.namespaces", "belongs to online"),
        ("offline", {"namespaces": ["sample"]}, "offline.namespaces", "belongs to online"),
        ("offline", {"namespaces": ["a", "a"]}, "offline.namespaces", "there 2 times"),
        ("pools.1.count", 0, "fleetfoot:sample.enabled", "no worker"),
        ("sample.replicas", True, "fleetfoot:sample.replicas", "valid integer"),
        ("pools", [], "fleetfoot:pools", "at least 1"),
    ],
)
def test_bad_input_is_told_with_field_and_fix(path: str, value: Any, field: str, says: str) -> None:
    with pytest.raises(FleetfootError, match=rf"(?s){field}.*{says}.*Nothing was changed"):
        load(changed(path, value), host_memory_mib=24_000)


def test_a_disk_smaller_than_its_image_is_refused() -> None:
    config = changed("pools.1.image", "generic")
    config["pools"][1]["disk"] = "2GiB"
    with pytest.raises(FleetfootError, match=r"pools\[1\]\.disk: 2048 MiB is less than the image"):
        load(config)


def test_labels_that_nodes_may_give_themselves_are_taken() -> None:
    labels = {"topology.kubernetes.io/zone": "a", "example.com/rack": "r1", "plain": ""}
    assert load(changed("pools.1.labels", labels)).pools[1].labels == labels


def test_all_reasons_are_told_together() -> None:
    config = changed("pools.1.count", -1)
    config["network"]["cidr"] = "nonsense"
    with pytest.raises(FleetfootError, match=r"(?s)network\.cidr.*pools\[1\]\.count"):
        load(config)


def test_offline_keeps_its_defaults_beside_what_is_said() -> None:
    config = load({**DEFAULT, "apiservers": {"offline": {"cpus": 0.5}}}, host_memory_mib=64 * 1024)
    assert config.apiservers.offline.max_requests == 100
    assert config.apiservers.offline.weight == IDLE
