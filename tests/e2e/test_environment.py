"""The environment as its users have it, from the first `up` to `down`; tests stand in order."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import ssl
import stat
import subprocess
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from fleetfoot.machines import process
from tests.e2e.stacks import STATE, NodeWatch, Stack, assert_nothing_left, eventually

pytestmark = pytest.mark.e2e

#: A step that changed something, as `fleetfoot up` tells it.
STEP = r"^ [+~-]  \S"


def answer(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as reply:
        return json.load(reply)


def sample_url(stack: Stack) -> str:
    return str(json.loads(stack.fleetfoot("outputs", "--json").stdout)["sample_url"])


def answers(stack: Stack) -> bool:
    try:
        return bool(answer(f"{sample_url(stack)}/stats")["words"])
    except (OSError, urllib.error.HTTPError):
        return False


def process_of(stack: Stack, machine: str) -> int:
    return int(stack.paths.record(machine).read_text().split()[0])


def started(stack: Stack) -> dict[str, int]:
    return {row["name"]: process_of(stack, row["name"]) for row in stack.status()["machines"]}


def generations_of(stack: Stack) -> dict[str, int]:
    """Return how often each object of the sample service was changed."""
    found = stack.get("deployments,services,poddisruptionbudgets", "--namespace=sample")["items"]
    return {
        f"{o['kind']} {o['metadata']['name']}": o["metadata"].get("generation", 0) for o in found
    }


def test_everything_is_ready_after_two_kills(environment: Stack) -> None:
    status = environment.status()
    assert set(status) == {"stack", "engine", "machines", "apiservers", "etcd", "nodes"}
    rows = [row for kind in ("machines", "apiservers", "etcd", "nodes") for row in status[kind]]
    assert [row["ready"] for row in rows] == [True] * len(rows)
    assert [row["name"] for row in status["nodes"]] == ["worker-1", "worker-2"]
    assert [row["name"] for row in status["machines"]] == ["control-1", "worker-1", "worker-2"]


def test_the_sample_service_answers_from_its_data(environment: Stack) -> None:
    url = sample_url(environment)
    assert answer(f"{url}/stats")["words"] > 100_000
    senses = answer(f"{url}/words/dog")["senses"]
    assert any("domesticated" in sense["gloss"] for sense in senses)
    pods = {answer(f"{url}/stats")["pod"] for _ in range(20)}
    assert len(pods) == 2, "requests reach one pod only"


def test_pods_find_services_by_their_short_names(environment: Stack) -> None:
    wanted = environment.get("service", "dictionary", "--namespace=sample")["spec"]["clusterIP"]
    names = ["dictionary", "dictionary.sample", "dictionary.sample.svc.cluster.local"]
    look = f"import socket; print([socket.gethostbyname(name) for name in {names}])"
    pod = ("exec", "--namespace=sample", "deployment/dictionary", "--", "python3", "-c", look)
    assert environment.kubectl(*pod).strip() == str([wanted] * len(names))


def test_its_image_came_from_the_environments_registry(environment: Stack) -> None:
    pods = environment.get("pods", "--namespace=sample")["items"]
    images = {pod["spec"]["containers"][0]["image"] for pod in pods}
    assert images
    assert all(
        image.startswith("registry.e2e.fleetfoot.internal:5000/sample@sha256:") for image in images
    )


def test_a_second_up_changes_nothing(environment: Stack) -> None:
    before = started(environment)
    generations = generations_of(environment)
    said = environment.fleetfoot("up").stdout
    assert not re.search(STEP, said, re.MULTILINE), said
    assert started(environment) == before
    assert generations_of(environment) == generations


def test_onboarding_again_changes_nothing(environment: Stack) -> None:
    # One of two that are the same: each takes minutes on an emulated processor.
    argv = ["-i", "inventory/fleetfoot.yml", "playbooks/onboard.yml", "--check", "--diff"]
    said = environment.run("ansible-playbook", *argv, "--limit=worker-1").stdout
    recap = re.findall(r"^(\S+)\s*: ok=(\d+)\s+changed=(\d+).*failed=(\d+)", said, re.MULTILINE)
    assert {name for name, *_ in recap} == {"worker-1"}, said
    assert all(int(ok) > 50 for _, ok, _, _ in recap), said
    assert all((changed, failed) == ("0", "0") for _, _, changed, failed in recap), said


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("vm.dirty_background_ratio", "40"),
        ("vm.dirty_ratio", "60"),
        ("vm.dirty_expire_centisecs", "6000"),
        ("vm.dirty_writeback_centisecs", "1500"),
        ("net.ipv4.ip_forward", "1"),
    ],
)
def test_the_running_kernel_has_the_setting(environment: Stack, setting: str, value: str) -> None:
    assert environment.ssh("worker-1", f"sysctl --values {setting}").strip() == value


def test_the_running_kernel_has_the_mount_options(environment: Stack) -> None:
    mounts = environment.ssh("worker-1", "cat /proc/mounts").splitlines()
    options = next(line for line in mounts if line.split()[1] == "/").split()[3].split(",")
    assert {"noatime", "commit=60", "nobarrier"} <= set(options)


@pytest.mark.parametrize("module", ["usbcore", "usb_storage", "xhci_hcd"])
def test_usb_is_neither_loaded_nor_loadable(environment: Stack, module: str) -> None:
    loaded = environment.ssh("worker-1", f"ls -d /sys/bus/usb /sys/module/{module}", check=False)
    assert loaded.count("No such file") == 2, loaded
    tried = environment.ssh("worker-1", f"modprobe {module} && echo LOADED", check=False)
    assert "LOADED" not in tried


def test_programs_say_their_pinned_versions(environment: Stack) -> None:
    pinned = {"kubelet": "v1.36.", "kube-proxy": "v1.36.", "containerd": "v2.4."}
    for program, version in pinned.items():
        assert version in environment.ssh("worker-1", f"{program} --version"), program
    for program in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        assert "v1.36." in environment.ssh("control-1", f"{program} --version"), program
    assert "3.6." in environment.ssh("control-1", "etcd --version")
    assert "1.15." in environment.ssh("control-1", "coredns -version")


def https_status(address: str, port: int, path: str) -> int:
    """Return the status of a request without any credential; who serves is not checked here."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(address, port, timeout=20, context=context)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("port", "path"), [(6443, "/readyz"), (6443, "/api"), (7443, "/metrics"), (5000, "/v2/")]
)
def test_nobody_is_served_anonymously(environment: Stack, port: int, path: str) -> None:
    address = environment.machine("control-1")["address"]
    assert https_status(address, port, path) == HTTPStatus.UNAUTHORIZED


def test_etcd_and_the_kubelet_ask_for_certificates(environment: Stack) -> None:
    control = environment.machine("control-1")["address"]
    worker = environment.machine("worker-1")["address"]
    with pytest.raises(OSError, match=r"(?i)certificate|closed|reset"):
        https_status(control, 2379, "/version")
    assert https_status(worker, 10250, "/pods") == HTTPStatus.UNAUTHORIZED


def test_secrets_are_private_files_and_on_no_command_line(environment: Stack) -> None:
    root = STATE / environment.name
    secrets = [path.read_text().strip() for path in (root / "secrets").rglob("*") if path.is_file()]
    assert len(secrets) >= 4
    for path in (STATE, *STATE.rglob("*")):
        inside = path.relative_to(STATE).parts
        if path.is_symlink() or {"root", "upper", "work", "volumes"} & set(inside):
            continue  # a machine's own file system
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & 0o002, f"{path} is writable for all"
        assert STATE.stat().st_mode & 0o077 == 0
        if "secrets" in inside or path.name.endswith(".key") or "credentials" in inside:
            assert mode & 0o077 == 0, f"{path} has mode {mode:o}"
    for found in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = found.read_text(errors="replace")
        except OSError:
            continue
        assert not any(secret in words for secret in secrets), words


def test_the_boot_ledger_has_every_stage(environment: Stack, tmp_path: Path) -> None:
    picture = tmp_path / "boot.png"
    argv = ["status", "--boot", "--json", "--picture", str(picture)]
    rows = json.loads(environment.fleetfoot(*argv).stdout)
    worker = next(row for row in rows if row["machine"] == "worker-1")
    stages = ["firmware", "kernel", "initrd", "services", "runtime", "node"]
    assert list(worker["marks"]) == stages
    assert sorted(worker["marks"].values()) == list(worker["marks"].values())
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_another_up_waits_or_says_who_runs(environment: Stack) -> None:
    first, second = environment.start_up(), environment.start_up()
    outputs = [run.communicate(timeout=600)[0] for run in (first, second)]
    assert [run.returncode for run in (first, second)] == [0, 0], outputs
    assert any(re.search(r"wait|lock", said) for said in outputs), outputs


def test_bad_input_is_refused_before_anything_changes(environment: Stack) -> None:
    before = started(environment)
    worker = environment.pool("worker")
    worker["count"], worker["flavour"] = -1, "big"
    environment.write()
    try:
        done = environment.fleetfoot("up", check=False)
        assert done.returncode != 0
        assert "fleetfoot:pools[1].count" in done.stdout
        assert "fleetfoot:pools[1].flavour: no such key" in done.stdout
        assert "Traceback" not in done.stdout
    finally:
        worker["count"] = 2
        del worker["flavour"]
        environment.write()
    assert started(environment) == before


def test_a_killed_worker_is_seen_and_replaced(environment: Stack) -> None:
    before = started(environment)
    os.kill(before["worker-2"], signal.SIGKILL)
    eventually(lambda: not environment.machine("worker-2")["ready"])
    environment.fleetfoot("refresh")
    assert "worker-2" in environment.fleetfoot("preview").stdout
    environment.fleetfoot("up")
    now = started(environment)
    assert now["worker-2"] != before["worker-2"]
    assert {**now, "worker-2": 0} == {**before, "worker-2": 0}
    assert all(row["ready"] for row in environment.status()["nodes"])
    eventually(lambda: answers(environment))


@pytest.mark.long  # with the boot of an emulated machine
def test_a_worker_whose_kernel_panics_comes_back(environment: Stack) -> None:
    before, booted = started(environment), environment.boot("worker-2")
    assert booted
    record = environment.paths.record("worker-2")

    def ended_or_booted() -> bool:
        return not process.find(record) or environment.boot("worker-2") not in ("", booted)

    panic = "systemd-run --no-block sh -c 'echo c > /proc/sysrq-trigger'"
    environment.ssh("worker-2", panic, check=False)
    # A minute and a half where nothing else runs.
    eventually(ended_or_booted, timeout=600)
    assert process.find(record), "QEMU ended instead of booting its guest again"
    eventually(lambda: all(row["ready"] for row in environment.status()["nodes"]), timeout=300)
    assert started(environment) == before


def test_the_hypervisor_runs_as_a_probe_guest_showed(environment: Stack) -> None:
    pid = process_of(environment, "worker-1")
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    used = words[words.index("-accel") + 1].partition(",")[0]
    shown = {path.read_text() for path in Path("/run/fleetfoot").glob("accel-*")}
    assert used in (shown or {"tcg"})
    assert words[words.index("-sandbox") + 1].startswith("on,")


def test_a_control_machine_has_the_bounds_it_was_given(environment: Stack) -> None:
    pid = str(process_of(environment, "control-1"))
    groups = list(Path("/sys/fs/cgroup").glob(f"**/fleetfoot/{environment.name}/control-1"))
    assert groups
    limits = {}
    for group in groups:
        if not any((group / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
            continue
        assert pid in (group / "cgroup.procs").read_text().split()
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (group / name).exists():
                limits[name] = int((group / name).read_text())
    assert list(limits.values()) == [3 << 30]


def settled(stack: Stack) -> bool:
    """Whether all pods of the sample service are available."""
    status = stack.get("deployment", "dictionary", "--namespace=sample")["status"]
    return bool(status.get("availableReplicas") == status.get("replicas") == 2)


def test_a_stopped_registry_stops_no_service(environment: Stack) -> None:
    eventually(lambda: settled(environment), timeout=240)
    environment.ssh("control-1", "systemctl stop docker-registry")
    try:
        assert answers(environment)
        said = environment.fleetfoot("up").stdout
        assert not re.search(STEP, said, re.MULTILINE), said
        environment.kubectl("delete", "pod", "--namespace=sample", "--all", "--wait=false")
        eventually(lambda: answers(environment), timeout=240)
    finally:
        environment.ssh("control-1", "systemctl start docker-registry")


def test_a_smaller_pool_drains_the_node_that_leaves(environment: Stack) -> None:
    before = started(environment)
    environment.pool("worker")["count"] = 1
    environment.write()
    assert "worker-2" in environment.fleetfoot("preview").stdout
    with NodeWatch(environment) as watch:
        environment.fleetfoot("up")
    assert ("worker-2", True, False) in watch.seen, "it was not cordoned before it left"
    assert started(environment) == {k: v for k, v in before.items() if k != "worker-2"}
    assert [row["name"] for row in environment.status()["nodes"]] == ["worker-1"]
    assert answers(environment)


def lose_hypervisor(stack: Stack, machine: str, run: subprocess.Popen[str]) -> None:
    """Let QEMU abort as on an assertion of its own, as soon as its guest prints something."""
    paths = stack.paths
    console = paths.machines / machine / "console.log"
    booting = eventually(
        lambda: (
            run.poll() is not None
            or (console.exists() and console.stat().st_size and process.find(paths.record(machine)))
        ),
        timeout=300,
        pause=0.05,
    )
    assert isinstance(booting, process.Daemon), "the guest never booted"
    booting.send(signal.SIGABRT)


def test_a_larger_pool_of_another_size_grows_and_rolls(environment: Stack) -> None:
    before, pool = started(environment), environment.pool("worker")
    pool["count"] = 2
    environment.write()
    told = re.findall(
        r"^ \S+ +(.*?) would be", environment.fleetfoot("preview").stdout, re.MULTILINE
    )
    assert {line.split()[-1] for line in told} == {"worker-2", "onboard-worker-2"}, told
    pool["memory"] = "1792MiB"
    environment.write()
    assert "worker-1" in environment.fleetfoot("preview").stdout
    with environment.start_up() as run:
        lose_hypervisor(environment, "worker-2", run)
        said, _ = run.communicate(timeout=1800)
    assert run.returncode == 0, said
    now = started(environment)
    assert now["control-1"] == before["control-1"]
    assert now["worker-1"] != before["worker-1"]
    nodes = environment.status()["nodes"]
    assert [(row["name"], row["ready"]) for row in nodes] == [
        ("worker-1", True),
        ("worker-2", True),
    ]
    for row in nodes:
        capacity = environment.get("node", row["name"])["status"]["capacity"]["memory"]
        assert int(capacity.removesuffix("Ki")) < 1792 * 1024
    eventually(lambda: answers(environment))


def runs(pid: int) -> bool:
    """Whether a process is there and is no zombie that its host's init has yet to collect."""
    try:
        stat_line = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat_line.rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.ends_environment
def test_down_leaves_nothing(environment: Stack) -> None:
    pids = started(environment).values()
    done = environment.down()
    assert done.returncode == 0, done.stdout
    assert_nothing_left(environment.name, "10.84.")
    assert not [pid for pid in pids if runs(pid)]
