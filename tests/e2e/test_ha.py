"""A control plane of several machines: what operators do with it, and what it survives.

The tests stand in the order in which an operator would come to them; each leaves the control plane
whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import ssl
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fleetfoot.machines import process
from fleetfoot.machines.fleet import Fleet
from tests.e2e.counter import Counter, counting
from tests.e2e.stacks import Stack, eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

pytestmark = pytest.mark.e2e

MACHINES = ("control-1", "control-2", "quorum-1")
#: Those of which one instance leads.
PROGRAMS = ("kube-scheduler", "kube-controller-manager")
#: Every process of the control plane: unit, and a machine that has it, or how its leader is known.
PROCESSES = [
    ("etcd", "vote"),
    ("etcd-events", "vote"),
    ("kube-apiserver@online", "control-1"),
    ("kube-apiserver@offline", "control-1"),
    ("kube-controller-manager", "lease"),
    ("kube-scheduler", "lease"),
    ("haproxy@front", "control-1"),
    ("coredns", "control-1"),
    ("kubelet-csr-approver", "control-1"),
    ("docker-registry", "quorum-1"),
    ("haproxy@registry", "quorum-1"),
]


#: The smallest quota that may be configured; what else these tests write stays far below it.
_SMALL_QUOTA, _FILLER_BYTES = 64 << 20, 250_000
#: Put etcd's data on another disk.
MOVE = """
set -e
systemctl stop etcd
rm --force /var/lib/etcd/filler
tar --create --file=/root/etcd.tar --directory=/var/lib/etcd .
{change}
tar --extract --same-owner --file=/root/etcd.tar --directory=/var/lib/etcd
rm /root/etcd.tar
systemctl start etcd
"""
#: Beside what is there, room for the log files that it makes until it notices, and to come back.
SMALL_DISK = MOVE.format(
    change="size=$(stat --format=%s /root/etcd.tar);"
    " mount -t tmpfs -o size=$((size + (500 << 20))) tmpfs /var/lib/etcd"
)
LARGE_DISK = MOVE.format(change="umount /var/lib/etcd; find /var/lib/etcd -mindepth 1 -delete")


@pytest.fixture(scope="module")
def ha() -> Iterator[Stack]:
    with Stack("e2e-ha", 71, like="ha") as stack:
        small = f"{_SMALL_QUOTA >> 20}MiB"
        stack.config["fleetfoot:etcd"] = {"quota": small, "events_quota": small}
        stack.control_only()
        stack.fleetfoot("up")
        yield stack


def members(stack: Stack, unit: str = "etcd", *, machine: str = MACHINES[0]) -> dict[str, bool]:
    """Return the members of an etcd, as one of them knows them, and whether each votes."""
    ask = f"set -a; . /etc/{unit}/ctl.env; etcdctl member list --write-out=json"
    listed = json.loads(stack.ssh(machine, ask))["members"]
    return {member["name"]: not member.get("isLearner", False) for member in listed}


def instances(stack: Stack) -> int:
    """Return how many online apiservers the Service `kubernetes` has."""
    slices = stack.get("endpointslices", "kubernetes", "--namespace=default")
    return sum(len(endpoint["addresses"]) for endpoint in slices["endpoints"])


def pid(stack: Stack, machine: str, unit: str) -> str:
    """Return the main process of a unit."""
    return stack.ssh(machine, f"systemctl show --property=MainPID --value {unit}").strip()


def holder(stack: Stack, program: str) -> str:
    """Return which instance of a program leads: its machine, `_`, and an id of its start."""
    lease = stack.get("lease", program, "--namespace=kube-system")
    return str(lease["spec"]["holderIdentity"])


def leader(stack: Stack, program: str) -> str:
    """Return the machine whose instance of a program leads."""
    return holder(stack, program).split("_")[0]


def renewed(stack: Stack, program: str) -> str:
    """Return when the instance that leads said so last."""
    return str(stack.get("lease", program, "--namespace=kube-system")["spec"]["renewTime"])


def crash(stack: Stack, machine: str) -> None:
    """Kill all of an nspawn machine at once."""
    outside = process.find(stack.paths.record(machine))
    assert outside is not None
    (inside,) = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
    os.kill(int(inside), signal.SIGKILL)
    eventually(lambda: process.find(stack.paths.record(machine)) is None)


def elected(stack: Stack, unit: str) -> str:
    """Return the machine whose member leads an etcd."""
    leading = {row["member"] for row in stack.status()["etcd"] if row["leads"]}
    alias = unit.removeprefix("etcd")
    return next(machine for machine in MACHINES if machine + alias in leading)


def kill(stack: Stack, unit: str, place: str) -> None:
    """Kill a process; wait until it runs again and, where one leads, until the next one does.

    Args:
        stack: Whose control plane it is.
        unit: Its unit.
        place: Its machine, or by what the one that leads is known: `lease` or `vote`.
    """
    led = holder(stack, unit) if place == "lease" else ""
    machine = elected(stack, unit) if place == "vote" else led.split("_")[0] or place
    before = pid(stack, machine, unit)
    stack.ssh(machine, f"systemctl kill --signal=SIGKILL {unit}")
    eventually(lambda: pid(stack, machine, unit) not in {"0", before})
    if led:
        eventually(lambda: holder(stack, unit) not in {"", led})


def goes_on(counter: Counter, writes: int = 0) -> None:
    """Wait until more than so many further writes were acknowledged."""
    seen = counter.acknowledged
    eventually(lambda: counter.acknowledged > seen + writes, pause=0.1)


def recovered(stack: Stack) -> None:
    """Wait until every machine's control services run and both groups are ready."""

    def whole() -> bool:
        status = stack.status()
        return all(row["ready"] for row in status["machines"] + status["apiservers"])

    eventually(whole)
    for machine in MACHINES:
        eventually(
            lambda m=machine: (
                not stack.ssh(m, "systemctl list-units --failed --plain --no-legend").strip()
            )
        )


def test_every_part_is_there_as_often_as_asked(ha: Stack) -> None:
    assert members(ha) == dict.fromkeys(MACHINES, True)
    events = members(ha, "etcd-events")
    assert events == {f"{name}-events": True for name in members(ha)}
    assert instances(ha) == 2
    for name in PROGRAMS:
        assert leader(ha, name) in {"control-1", "control-2"}
        assert all(pid(ha, machine, name) != "0" for machine in ("control-1", "control-2"))
    for machine in ("control-1", "control-2"):
        for group in ("online", "offline"):
            assert pid(ha, machine, f"kube-apiserver@{group}") != "0"


def test_killed_processes_lose_nothing(ha: Stack) -> None:
    with counting(ha) as online, counting(ha, "offline", "offline") as offline:
        for unit, place in PROCESSES:
            kill(ha, unit, place)
            goes_on(online)
            goes_on(offline)
    recovered(ha)


def test_online_does_not_feel_that_offline_is_down(ha: Stack) -> None:
    with counting(ha) as online:
        for machine in ("control-1", "control-2"):
            ha.ssh(machine, "systemctl stop kube-apiserver@offline")
        try:
            goes_on(online, 100)
        finally:
            for machine in ("control-1", "control-2"):
                ha.ssh(machine, "systemctl start kube-apiserver@offline")
    assert not online.failed, online.failed
    recovered(ha)


def served(stack: Stack, port: int) -> str:
    """Return the certificate that a server shows, as PEM."""
    return ssl.get_server_certificate((stack.machine("control-1")["address"], port))


def leaves(stack: Stack) -> dict[str, str]:
    """Return the hash of each certificate of a control machine, and of each one's key."""
    pairs = (
        "find /etc -name '*.key' ! -name ca.key |"
        ' while read -r key; do [ ! -e "${key%key}crt" ] || sha256sum "$key" "${key%key}crt"; done'
    )
    found = {}
    for machine in MACHINES:
        for line in stack.ssh(machine, pairs).splitlines():
            digest, file = line.split()
            found[f"{machine}:{file}"] = digest
    return found


def test_certificates_are_renewed_while_it_serves(ha: Stack) -> None:
    running = [
        (machine, unit)
        for machine in ("control-1", "control-2")
        for unit in ("etcd", "kube-apiserver@online", "kube-apiserver@offline", "kube-scheduler")
    ]
    before = [pid(ha, *one) for one in running]
    old, files = served(ha, 7443), leaves(ha)
    assert {"control-1:/etc/etcd/pki/peer.key", "quorum-1:/etc/haproxy/registry.crt"} <= set(files)
    with counting(ha) as online:
        said = ha.play("renew.yml")
    assert "unreachable=0" in said
    assert not online.failed, online.failed
    assert [pid(ha, *one) for one in running] == before, "something was restarted"
    now = leaves(ha)
    assert set(now) == set(files)
    assert not {file for file, digest in now.items() if digest == files[file]}
    eventually(lambda: served(ha, 7443) != old)
    # What it was given for others is used, too: a new connection to etcd shows the new certificate.
    ha.ssh("control-1", "systemctl restart etcd")
    with counting(ha) as online:
        goes_on(online, 10)
    recovered(ha)


@contextlib.contextmanager
def changed(stack: Stack, pool: str, **keys: Any) -> Iterator[None]:
    """Bring up a changed pool, and the one from before when the block ends."""
    config = stack.pool(pool)
    before = dict(config)
    config.update(keys)
    stack.write()
    try:
        stack.fleetfoot("up")
        yield
    finally:
        config.clear()
        config.update(before)
        stack.write()
        stack.fleetfoot("up")


@pytest.mark.long
def test_members_of_etcd_that_left_come_back(ha: Stack) -> None:
    others = [group for group in ha.pool("control")["groups"] if not group.startswith("etcd")]
    with counting(ha):
        with changed(ha, "control", groups=others):
            assert members(ha, machine="quorum-1") == {"quorum-1": True}
            assert pid(ha, "control-1", "etcd") == "0"
        assert members(ha) == dict.fromkeys(MACHINES, True)
    kept = ha.ssh("control-1", "ls -d /var/lib/etcd/before-return-*").split()
    assert len(kept) == 1
    ha.ssh("control-1", f"rm -r {kept[0]}")
    recovered(ha)


@pytest.mark.long
def test_an_apiserver_more_and_less_is_one_change(ha: Stack) -> None:
    groups = [*ha.pool("quorum")["groups"], "apiserver_online"]
    started = {m.spec.name: m.started for m in Fleet.of_stack(ha.name).all()}
    with counting(ha) as online:
        with changed(ha, "quorum", groups=groups):
            eventually(lambda: instances(ha) == 3)
            assert pid(ha, "quorum-1", "kube-apiserver@online") != "0"
        eventually(lambda: instances(ha) == 2)
    assert not online.failed, online.failed
    assert pid(ha, "quorum-1", "kube-apiserver@online") == "0"
    assert {m.spec.name: m.started for m in Fleet.of_stack(ha.name).all()} == started


@pytest.mark.long
def test_a_dead_machine_is_replaced_without_its_data(ha: Stack) -> None:
    fleet = Fleet.of_stack(ha.name)
    with counting(ha) as online:
        # The one that is first in every list, and whose address kubeconfigs have. Names lead there
        # still when it is only dead, so whoever asks by name has to go on to the next address.
        crash(ha, "control-1")
        led = {program: renewed(ha, program) for program in PROGRAMS}
        goes_on(online, 10)
        for program, last in led.items():
            eventually(lambda p=program, last=last: renewed(ha, p) > last)
        fleet.delete("control-1")
        shutil.rmtree(ha.paths.volumes / "control-1")
        goes_on(online, 10)
        ha.fleetfoot("up")
    assert members(ha) == dict.fromkeys(MACHINES, True)
    assert instances(ha) == 2
    recovered(ha)


@pytest.mark.long
def test_control_machines_are_replaced_one_after_another(ha: Stack) -> None:
    programs = ha.paths.root / "site-programs"
    current = programs.read_text()
    # As if others ran: what runs is brought up to date before a machine goes.
    programs.write_text("others")
    before = {m.spec.name: m.started for m in Fleet.of_stack(ha.name).all()}
    ha.pool("control")["memory"] = "3328MiB"
    # The third instance of offline comes with a budget, so with a new machine.
    ha.pool("quorum")["groups"].append("apiserver_offline")
    ha.write()
    with counting(ha), counting(ha, "offline", "offline"):
        ha.fleetfoot("up")
    after = {m.spec.name: m.started for m in Fleet.of_stack(ha.name).all()}
    assert {name for name in before if before[name] != after[name]} == set(MACHINES)
    assert pid(ha, "quorum-1", "kube-apiserver@offline") != "0"
    assert programs.read_text() == current
    assert members(ha) == dict.fromkeys(MACHINES, True)
    recovered(ha)


@pytest.mark.long
def test_machines_that_were_down_come_back_before_one_is_changed(ha: Stack) -> None:
    fleet = Fleet.of_stack(ha.name)
    ha.kubectl("create", "configmap", "restart", "--from-literal=who=ha")
    for name in MACHINES:  # as when the host is restarted
        fleet.stop(name)
    ha.pool("control")["memory"] = "3264MiB"
    ha.write()
    ha.fleetfoot("up")
    assert {machine.spec.memory for machine in fleet.all()} == {3264, 2048}
    assert ha.get("configmap", "restart")["data"] == {"who": "ha"}
    ha.kubectl("delete", "configmap", "restart")
    assert members(ha) == dict.fromkeys(MACHINES, True)
    recovered(ha)


@pytest.mark.long
def test_one_that_died_is_replaced_before_one_that_serves(ha: Stack) -> None:
    fleet = Fleet.of_stack(ha.name)
    ha.pool("control")["memory"] = "3200MiB"
    ha.write()
    with counting(ha):
        fleet.delete("control-2")
        # A dead one does not keep playbooks from the others.
        looked = ("playbooks/authorities.yml", "playbooks/preflight.yml")
        ha.run("ansible-playbook", "-i", "inventory/fleetfoot.yml", *looked)
        ha.play("site.yml", "--tags", "etcd", "--limit", "all:!control-2*")
        ha.fleetfoot("up")
    started = {machine.spec.name: machine.started for machine in fleet.all()}
    assert started["control-2"] < started["control-1"]
    assert {machine.spec.memory for machine in fleet.all()} == {3200, 2048}
    assert members(ha) == dict.fromkeys(MACHINES, True)
    recovered(ha)


def fill(stack: Stack, folder: Path, kind: str, numbers: Iterable[int]) -> str:
    """Create large objects; return what kubectl said."""
    told = {"involvedObject": {"namespace": "default"}} if kind == "Event" else {}
    items = [
        {
            "apiVersion": "v1",
            "kind": kind,
            "metadata": {
                "name": f"filler-{number}",
                "namespace": "default",
                "labels": {"filler": "yes"},
                "annotations": {"filler": "x" * _FILLER_BYTES},
            },
            **told,
        }
        for number in numbers
    ]
    file = folder / "fillers.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return str(stack.fleetfoot("kubectl", "--", "create", "-f", str(file), check=False).stdout)


def tidy(stack: Stack, kind: str) -> None:
    """Remove large objects; what etcd had no time for, where its disk is slow, once more."""
    argv = ("kubectl", "--", "delete", kind, "--namespace=default", "--selector=filler=yes")
    eventually(lambda: stack.fleetfoot(*argv, check=False).returncode == 0)


def overfill(stack: Stack, folder: Path, kind: str) -> None:
    """Create objects until etcd takes no more."""
    last = 5 * _SMALL_QUOTA // (4 * _FILLER_BYTES)
    fill(stack, folder, kind, range(last))
    assert "database space exceeded" in fill(stack, folder, kind, range(last, last + 1))


def take_writes(stack: Stack, folder: Path, kind: str, unit: str) -> None:
    """Do what the runbook says once there is room."""
    for machine in members(stack):
        stack.ssh(machine, f"systemctl start {unit}-recover")
    assert not any(row["alarms"] for row in stack.status()["etcd"])
    assert "created" in fill(stack, folder, kind, range(9000, 9001))
    tidy(stack, kind)


@pytest.mark.parametrize(("kind", "unit"), [("ConfigMap", "etcd"), ("Event", "etcd-events")])
def test_a_full_etcd_says_so_and_recovers(ha: Stack, tmp_path: Path, kind: str, unit: str) -> None:
    overfill(ha, tmp_path, kind)
    alarms = {row["member"]: row["alarms"] for row in ha.status()["etcd"] if row["alarms"]}
    assert set(alarms) == set(members(ha, unit))
    assert all("NOSPACE" in told for found in alarms.values() for told in found)
    assert ha.get(kind, "filler-0", "--namespace=default")  # reads go on
    tidy(ha, kind)
    take_writes(ha, tmp_path, kind, unit)


@pytest.mark.long
def test_a_full_etcd_is_given_more_room(ha: Stack, tmp_path: Path) -> None:
    overfill(ha, tmp_path, "ConfigMap")
    # Members restart, though each has its alarm.
    ha.play("site.yml", "--tags", "etcd", "-e", f"etcd_quota_bytes={8 * _SMALL_QUOTA}")
    take_writes(ha, tmp_path, "ConfigMap", "etcd")


@pytest.mark.long
def test_what_most_members_lost_begins_anew_with_consent(ha: Stack, tmp_path: Path) -> None:
    site = ("-i", "inventory/fleetfoot.yml", "playbooks/site.yml", "--tags", "etcd")
    file = tmp_path / "etcd.tar"
    ha.kubectl("create", "configmap", "kept", "--from-literal=who=ha")
    ha.play("etcd_backup.yml", "-e", f"etcd_backup_file={file}")
    for machine in MACHINES[:2]:
        ha.ssh(machine, "systemctl stop kube-apiserver@online kube-apiserver@offline")
    for unit in ("etcd", "etcd-events"):
        for machine in MACHINES:
            ha.ssh(machine, f"systemctl stop {unit}; mv /var/lib/{unit}/member{{,-lost}}")
        refused = ha.run("ansible-playbook", *site, check=False)
        assert refused.returncode
        assert f"{unit}-begun" in refused.stdout
        (ha.paths.root / f"{unit}-begun").unlink()
        ha.play("site.yml", "--tags", "etcd")
    assert pid(ha, "control-1", "kube-apiserver@online") == "0", "it serves an empty cluster"
    consent = ("-e", "etcd_restore_replace=true", "-e", f"etcd_restore_file={file}")
    ha.play("etcd_restore.yml", *consent)
    assert ha.get("configmap", "kept")["data"] == {"who": "ha"}
    ha.kubectl("delete", "configmap", "kept")
    for machine in MACHINES:
        ha.ssh(machine, "rm -r /var/lib/etcd*/member-lost /var/lib/etcd/before-restore-*")
    recovered(ha)


@pytest.fixture
def small_disk(ha: Stack) -> Iterator[str]:
    """A machine whose member of etcd has a disk that is soon full."""
    machine = "quorum-1"
    for each in MACHINES:  # as small as can be, for the database has to grow
        ha.ssh(each, "systemctl start etcd-recover")
    ha.ssh(machine, SMALL_DISK)
    try:
        yield machine
    finally:
        ha.ssh(machine, LARGE_DISK)
        recovered(ha)


def test_a_full_disk_says_so_and_the_others_go_on(
    ha: Stack, small_disk: str, tmp_path: Path
) -> None:
    def member() -> Any:
        return next(row for row in ha.status()["etcd"] if row["member"] == small_disk)

    # Less than the quota, at which all would stop.
    numbers = iter(range(3 * _SMALL_QUOTA // 4 // _FILLER_BYTES))

    def stopped() -> bool:
        # Each time anew, for it gives back room when it drops an old log.
        ha.ssh(small_disk, "cat /dev/zero >> /var/lib/etcd/filler", check=False)
        if some := list(islice(numbers, 32)):
            fill(ha, tmp_path, "ConfigMap", some)
        return not member()["ready"]

    eventually(lambda: member()["ready"])
    with counting(ha) as online:
        eventually(stopped)
        assert any(told.startswith("DISK") for told in member()["alarms"])
        goes_on(online, 10)
        ha.ssh(small_disk, "rm /var/lib/etcd/filler")
        ha.ssh(small_disk, "etcd-restart etcd")
        eventually(lambda: member()["ready"])
    assert not member()["alarms"]
    tidy(ha, "ConfigMap")


@pytest.fixture(scope="module")
def backup(ha: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with what the environment knew; the environment is no more."""
    file = tmp_path_factory.mktemp("backup") / "etcd.tar"
    ha.kubectl("create", "configmap", "known", "--from-literal=who=ha")
    ha.kubectl("create", "secret", "generic", "hidden", "--from-literal=what=treasure")
    ha.play("etcd_backup.yml", "-e", f"etcd_backup_file={file}")
    assert file.stat().st_mode & 0o777 == 0o600
    ha.fleetfoot("down", "--yes")
    return file


@pytest.fixture(params=["local", pytest.param("ha", marks=pytest.mark.long)])
def fresh(backup: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Stack, Path]]:
    """Its successor, which knows nothing yet, with one member of etcd or three; and the file."""
    with Stack("e2e-ha", 71, like=request.param) as stack:
        stack.control_only()
        stack.fleetfoot("up")
        yield stack, backup


def test_a_backup_is_restored_into_a_fresh_environment(fresh: tuple[Stack, Path]) -> None:
    stack, backup = fresh
    consent = ("-e", "etcd_restore_replace=true", "-e", f"etcd_restore_file={backup}")
    stack.play("etcd_restore.yml", *consent)
    assert stack.get("configmap", "known")["data"] == {"who": "ha"}
    assert stack.get("secret", "hidden")["data"] == {"what": "dHJlYXN1cmU="}
    assert all(row["ready"] for row in stack.status()["apiservers"])
    assert all(row["ready"] for row in stack.status()["etcd"])
    stack.fleetfoot("up")
    assert stack.get("configmap", "known")["data"] == {"who": "ha"}
