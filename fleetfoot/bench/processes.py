"""CPU time and memory of a machine's processes, read on the host."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot.machines.cgroups import Cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Usage"]

_USER, _SYSTEM = 11, 12  # fields 14 and 15 of /proc/PID/stat, counted after the command
_RESET_PEAK = "5"  # for /proc/PID/clear_refs (proc(5))
_TICK = os.sysconf("SC_CLK_TCK")


class Usage:
    """What an nspawn machine's processes use from now on; apiservers are told apart by group.

    Args:
        stack: Its stack.
        machine: Its name.
        cpu: The host's CPU that it is kept on.
    """

    def __init__(self, stack: str, machine: str, cpu: int) -> None:
        self._cpu = cpu
        self._busy, self._stolen = _busy(cpu)
        self._cgroup = Cgroup(stack, machine)
        self._before = {pid: _cpu(pid) for pid in self._pids()}
        for pid in self._before:
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)

    def since(self) -> dict[str, float]:
        """Return CPU seconds by program, and the most memory that apiservers held.

        What others took of the machine's CPU should be next to none: other processes of the host
        (`foreign_cpu_seconds`), and its hypervisor (`stolen_cpu_seconds`).
        """
        busy, stolen = _busy(self._cpu)
        cpu: dict[str, float] = defaultdict(float)
        memory = {"online": 0.0, "offline": 0.0}
        for pid, before in self._before.items():
            with contextlib.suppress(OSError):
                name = _name(pid)
                cpu[name] += _cpu(pid) - before
                if name.startswith("apiserver_"):
                    memory[name.removeprefix("apiserver_")] = _peak(pid)
        groups = {group: cpu.pop(f"apiserver_{group}", 0.0) for group in memory}
        machine = sum(cpu.values()) + sum(groups.values())
        return {
            "apiserver_cpu_seconds": sum(groups.values()),
            **{f"apiserver_{group}_cpu_seconds": used for group, used in groups.items()},
            "apiserver_rss_mib": sum(memory.values()),
            **{f"apiserver_{group}_rss_mib": held for group, held in memory.items()},
            **{f"{name}_cpu_seconds": cpu[name] for name in _OTHERS},
            "machine_cpu_seconds": machine,
            "foreign_cpu_seconds": max(0.0, busy - self._busy - machine),
            "stolen_cpu_seconds": stolen - self._stolen,
        }

    def _pids(self) -> Iterator[int]:
        for procs in self._cgroup.folders[0].rglob("cgroup.procs"):
            yield from (int(pid) for pid in procs.read_text().split())


# Program names as the kernel cuts them off, and what they are called here.
_OTHERS = {
    "etcd": "etcd",
    "haproxy": "haproxy",
    "scheduler": "kube-scheduler",
    "controllers": "kube-controller",
}


def _name(pid: int) -> str:
    command = Path(f"/proc/{pid}/comm").read_text().strip()
    if command == "kube-apiserver":
        flags = Path(f"/proc/{pid}/cmdline").read_text()
        return f"apiserver_{'offline' if '/apiserver-offline/' in flags else 'online'}"
    return next((name for name, start in _OTHERS.items() if command.startswith(start)), "other")


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICK


def _busy(cpu: int) -> tuple[float, float]:
    """Return how long a CPU of the host worked so far, and was kept from it by a hypervisor."""
    lines = Path("/proc/stat").read_text().splitlines()
    fields = next(line.split() for line in lines if line.startswith(f"cpu{cpu} "))
    user, nice, system, _idle, _waiting, irq, softirq, steal = (int(field) for field in fields[1:9])
    return (user + nice + system + irq + softirq) / _TICK, steal / _TICK


def _peak(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
