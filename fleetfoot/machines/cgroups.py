"""CPU and memory of nspawn machines, enforced from outside by the host's cgroup controllers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

__all__ = ["Cgroup"]

_ROOT = Path("/sys/fs/cgroup")
_END_SECONDS, _POLL_SECONDS = 10, 0.05
_PERIOD_US = 100_000


class Cgroup:
    """The group of one machine, under cgroup v2 or v1's cpu and memory hierarchies."""

    def __init__(self, stack: str, machine: str) -> None:
        self.unified = (_ROOT / "cgroup.controllers").exists()
        below = Path("fleetfoot") / stack / machine
        hierarchies = [_ROOT] if self.unified else [_ROOT / "cpu", _ROOT / "memory"]
        self.folders = [hierarchy / below for hierarchy in hierarchies]

    @property
    def procs(self) -> list[Path]:
        """The files a process writes its pid to in order to join."""
        return [folder / "cgroup.procs" for folder in self.folders]

    def create(self, cpus: float, memory: int) -> None:
        """Make the group with limits of `cpus` CPUs and `memory` MiB."""
        quota, limit = int(cpus * _PERIOD_US), memory * 1024 * 1024
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
            (cpu / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (cpu / "cpu.cfs_quota_us").write_text(str(quota))
            (mem / "memory.limit_in_bytes").write_text(str(limit))

    def delete(self) -> None:
        """End what still runs in the group and remove it, with parents that became empty."""
        deadline = time.monotonic() + _END_SECONDS
        for folder in self.folders:
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
