"""CPU and memory of nspawn machines, enforced from outside by the host's cgroup controllers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from fleetfoot.machines.spec import IDLE

__all__ = ["Cgroup"]

_ROOT = Path("/sys/fs/cgroup")
_END_SECONDS, _POLL_SECONDS = 10, 0.05
_PERIOD_US = 100_000
# Of all machines together. In v1 every session of the host (sched_autogroup) has 1024, a guest's
# hypervisor and each of Ansible's workers among them: a busy host would let etcd miss elections.
_ALL_SHARES = 4096
_SHARES_OF_100 = 1024  # what v1 calls the weight that v2 calls 100


class Cgroup:
    """The group of one machine, under cgroup v2 or v1's cpu and memory hierarchies."""

    def __init__(self, stack: str, machine: str) -> None:
        self.unified = (_ROOT / "cgroup.controllers").exists()
        below = Path("fleetfoot") / stack / machine
        hierarchies = [_ROOT] if self.unified else [_ROOT / "cpu", _ROOT / "memory"]
        self.folders = [hierarchy / below for hierarchy in hierarchies]
        # Beside v1's controllers a host has trees without any. The machine's service manager keeps
        # its units there: in one tree, two machines' units of a name would be one group, and what
        # one machine kills would die in the other.
        trees = () if self.unified else (_ROOT / "unified", _ROOT / "systemd")
        self._trees = [tree / below for tree in trees if tree.exists()]

    @property
    def procs(self) -> list[Path]:
        """The files a process writes its pid to in order to join."""
        return [folder / "cgroup.procs" for folder in (*self.folders, *self._trees)]

    def create(self, cpus: float, memory: int) -> None:
        """Make the group with limits of `cpus` CPUs and `memory` MiB."""
        quota, limit = int(cpus * _PERIOD_US), memory * 1024 * 1024
        for tree in self._trees:
            tree.mkdir(parents=True, exist_ok=True)
        for folder in self.folders:
            if self.unified:
                for parent in list(folder.parents)[2::-1]:
                    parent.mkdir(exist_ok=True)
                    (parent / "cgroup.subtree_control").write_text("+cpu +memory")
            folder.mkdir(parents=True, exist_ok=True)
        if self.unified:
            (self.folders[0] / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
            (self.folders[0] / "memory.max").write_text(str(limit))
        else:
            cpu, mem = self.folders
            (cpu.parents[1] / "cpu.shares").write_text(str(_ALL_SHARES))
            (cpu / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (cpu / "cpu.cfs_quota_us").write_text(str(quota))
            (mem / "memory.limit_in_bytes").write_text(str(limit))

    def budget(self, name: str, cpus: float, memory: int, weight: int) -> dict[str, Path]:
        """Make a group below the machine's, and return its folders by controller.

        Under cgroup v2 there is nothing to make: units of the machine bound themselves.

        Args:
            name: Its name.
            cpus: CPUs; 0 is no bound.
            memory: MiB; 0 is no bound.
            weight: Share of contended CPU time; 100 is that of one busy thread at nice 0 of the
                machine's other services, for those stand beside the group (at nice -10, as etcd is,
                a thread counts nine times as much). `IDLE` is what nobody else wants.
        """
        if self.unified:
            return {}
        below = {folder.relative_to(_ROOT).parts[0]: folder / name for folder in self.folders}
        for folder in below.values():
            folder.mkdir(exist_ok=True)
        quota = int(cpus * _PERIOD_US) or -1
        (below["cpu"] / "cpu.cfs_quota_us").write_text(str(quota))
        (below["cpu"] / "cpu.idle").write_text(str(int(weight == IDLE)))
        if weight != IDLE:
            (below["cpu"] / "cpu.shares").write_text(str(weight * _SHARES_OF_100 // 100))
        (below["memory"] / "memory.limit_in_bytes").write_text(str(memory * 1024 * 1024 or -1))
        return below

    def delete(self) -> None:
        """End what still runs in the group and remove it, with parents that became empty."""
        deadline = time.monotonic() + _END_SECONDS
        for folder in (*self.folders, *self._trees):
            while folder.exists() and not _removed(folder) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)  # a killed process stays a member until it is gone
            for parent in (folder.parent, folder.parent.parent):
                with contextlib.suppress(OSError):
                    parent.rmdir()


def _removed(folder: Path) -> bool:
    """Kill what is in a group and those below it, and try to remove them."""
    groups = sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True)
    for group in [*groups, folder]:
        for pid in _members(group):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            group.rmdir()
        except OSError:
            return False
    return True


def _members(group: Path) -> list[int]:
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except (FileNotFoundError, OSError):
        return []
