"""What takes long: hosts of one's own, rolls that go wrong, rolls with stand-ins."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from fleetfoot.cluster import is_ready
from fleetfoot.machines.fleet import Fleet
from fleetfoot.machines.spec import BootImage, MachineSpec
from fleetfoot.paths import cache_dir
from fleetfoot.stack.bootimage import boot_image
from tests.e2e.stacks import BIN, PROJECT, NodeWatch, Stack, assert_nothing_left, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.long]


@pytest.fixture
def own_host(environment: Stack, tmp_path: Path) -> Iterator[Path]:
    """An ordinary Debian 13 guest beside the stack's machines; gives an inventory that names it."""
    fleet = Fleet.of_stack(environment.name)
    image = BootImage(**boot_image("generic"))
    made = fleet.create(MachineSpec("my-host", "own", "qemu", image, 2, 2048, 10240), {})
    inventory = tmp_path / "my-hosts.yml"
    host = {"ansible_host": made.address, "kubelet_labels": {"example.com/rack": "a1"}}
    inventory.write_text(yaml.safe_dump({"workers": {"hosts": {"my-host": host}}}))
    try:
        yield inventory
    finally:
        fleet.delete("my-host")


def play(stack: Stack, playbook: str, inventory: Path, *options: str) -> dict[str, int]:
    """Run a playbook on the host of one's own alone; return what its recap counts."""
    argv = ["-i", "inventory/fleetfoot.yml", "-i", str(inventory), f"playbooks/{playbook}"]
    said = stack.run("ansible-playbook", *argv, "--limit", "my-host", *options, timeout=1800).stdout
    recap = re.findall(r"^(\S+)\s*: (ok=.*)$", said, re.MULTILINE)
    assert [name for name, _ in recap] == ["my-host"], said
    return {key: int(count) for key, count in re.findall(r"(\w+)=(\d+)", recap[0][1])}


def test_a_host_of_ones_own_joins_and_leaves(environment: Stack, own_host: Path) -> None:
    others = {row["name"] for row in environment.status()["nodes"]}
    # The stock kernel has USB drivers loaded; the role would ask for a restart.
    unload = ("-e", "usb_disable_unload=true")
    assert play(environment, "onboard.yml", own_host, *unload)["changed"] > 0
    node = eventually(lambda: ready_node(environment, "my-host"))
    assert node["metadata"]["labels"]["example.com/rack"] == "a1"
    assert play(environment, "onboard.yml", own_host, *unload)["changed"] == 0
    assert play(environment, "upgrade.yml", own_host)["failed"] == 0
    assert ready_node(environment, "my-host")
    assert play(environment, "offboard.yml", own_host)["changed"] > 0
    assert {row["name"] for row in environment.status()["nodes"]} == others


def ready_node(stack: Stack, name: str) -> dict:
    """Return a node that is Ready, else an empty one."""
    for node in stack.get("nodes")["items"]:
        if node["metadata"]["name"] == name and is_ready(node):
            return dict(node)
    return {}


@pytest.fixture
def image_without_kubelet() -> Iterator[str]:
    """An image that boots, and whose machines never become nodes."""
    name = "e2e-broken"
    folder = PROJECT / "images" / name
    shutil.copytree(PROJECT / "images" / "serverless", folder, symlinks=True)
    definition = folder / "image.toml"
    definition.write_text(
        definition.read_text().replace("cmdline = [", 'cmdline = [\n    "systemd.mask=kubelet",')
    )
    try:
        yield name
    finally:
        shutil.rmtree(folder)
        for built in (cache_dir() / "images").glob(f"**/{name}[-.]*"):
            shutil.rmtree(built) if built.is_dir() else built.unlink()


def images_of(stack: Stack) -> set[str]:
    return {m.spec.image.name for m in Fleet.of_stack(stack.name).all()}


def started(stack: Stack) -> dict[str, float]:
    return {m.spec.name: m.started for m in Fleet.of_stack(stack.name).all()}


def test_a_roll_stops_at_the_first_machine_that_does_not_come(
    environment: Stack, image_without_kubelet: str
) -> None:
    before, worker = started(environment), environment.pool("worker")
    good, worker["image"] = worker["image"], image_without_kubelet
    environment.write()
    try:
        said = environment.fleetfoot("up", check=False, timeout=3600)
        assert said.returncode != 0
        words = " ".join(said.stdout.split())
        assert f"did not become Ready with {image_without_kubelet}" in words, said.stdout
        assert "keeps its last-known-good image" in words, said.stdout
    finally:
        worker["image"] = good
        environment.write()
    assert images_of(environment) == {"control", good}
    assert all(row["ready"] for row in environment.status()["nodes"])
    changed = [name for name, at in started(environment).items() if before[name] != at]
    assert len(changed) == 1, "the roll went on after a failure"
    environment.fleetfoot("up")
    assert all(row["ready"] for row in environment.status()["nodes"])


def test_a_roll_with_stand_ins_never_has_fewer_nodes(environment: Stack) -> None:
    before, worker = started(environment), environment.pool("worker")
    worker["memory"], worker["roll"] = "1536MiB", {"max_surge": 1, "max_unavailable": 0}
    environment.write()
    with NodeWatch(environment) as watch:
        environment.fleetfoot("up")
    now = started(environment)
    assert set(now) == set(before)
    assert [name for name in now if now[name] == before[name]] == ["control-1"]
    assert watch.fewest >= 2


def bench(folder: Path, name: str, *options: str) -> dict[str, Any]:
    """Run one round of a bench; return what it wrote, when it left nothing else behind."""
    target = folder / f"{name}.json"
    argv = [str(BIN / "fleetfoot"), "bench", name, "--rounds", "1", *options, "--json", str(target)]
    subprocess.run(argv, cwd=PROJECT, check=True, timeout=1800)
    assert target.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert_nothing_left("bench", "10.95.")
    report: dict[str, Any] = json.loads(target.read_text())
    return report


def test_bench_apiserver_writes_what_it_measured(tmp_path: Path) -> None:
    report = bench(tmp_path, "apiserver", "--nodes", "50", "--seconds", "5")
    assert set(report["ratios"]) == {
        "shared_storm_over_idle_p99",
        "shared_lanes_storm_over_idle_p99",
        "split_storm_over_idle_p99",
        "shared_over_split_p99",
        "offline_throughput",
        "saturated_offline_throughput",
    }
    assert set(report["goals"]) == {
        "split_storm_over_idle_p99",
        "shared_storm_over_idle_p99",
        "offline_throughput",
        "leader_changes",
        "online_error_rate",
        "late_offline_requests",
    }
    assert report["setup"]["etcd_data"] == "memory"
    assert report["setup"]["storm_engines"] >= 1
    for arm in ("shared", "shared_lanes", "split"):
        found = report["arms"][arm]
        assert 0 < found["idle_p50_ms"] <= found["idle_p99_ms"]
        assert found["online_throughput"] > 0
        assert found["offline_throughput"] > 0
        assert (found["apiserver_offline_rss_mib"] > 0) == (arm == "split")


def test_bench_failover_writes_what_it_measured(tmp_path: Path) -> None:
    report = bench(tmp_path, "failover")
    arms = report["arms"]
    assert set(arms) == {"idle", "scheduler", "apiserver", "ha"}
    assert arms["ha"]["scheduler_seconds"] == arms["scheduler"]["worst_next_bound_s"]
    assert arms["ha"]["failed_online_requests"] == 0
    assert set(report["goals"]) == {
        "worst_next_bound_seconds",
        "failed_online_requests",
        "dropped_online_requests",
    }
    for goal in ("failed_online_requests", "dropped_online_requests"):
        assert report["goals"][goal]["met"]
    assert report["setup"]["etcd_data"] == "disk"
    for found in (arms[name] for name in ("idle", "scheduler", "apiserver")):
        assert found["next_bound_s"] > 0
        assert found["online_requests"] > 0
        assert found["failed"] == 0


def test_bench_pull_writes_what_it_measured(tmp_path: Path) -> None:
    report = bench(tmp_path, "pull", "--workload", "postgres")
    assert {
        "postgres.eager_over_lazy",
        "postgres.soci_over_lazy",
        "postgres.bytes_fraction",
    } <= set(report["ratios"])
    link = report["setup"]["link"]
    assert link["shaped"]["connect_ms"] >= link["before"]["connect_ms"] + 1
    assert 0 < link["shaped"]["rate_bits"] < 1.05e9
    for arm in ("eager", "tuned", "soci", "lazy", "traced"):
        found = report["arms"][f"postgres {arm}"]
        assert found["answer_s"] > 0
        assert (found["moved"] > 0.9) == (arm in {"eager", "tuned"})


def test_bench_boot_writes_what_it_measured(tmp_path: Path) -> None:
    report = bench(tmp_path, "boot")
    assert set(report["ratios"]) == {"node_ready", "containerd_ready", "ssh", "image_size"}
    for arm in ("generic", "serverless"):
        found = report["arms"][arm]
        assert found["ssh"] > 0
        assert 0 < found["containerd_ready"] < found["node_ready"]
