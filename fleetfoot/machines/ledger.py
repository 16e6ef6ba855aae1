"""The boot ledger: when each stage of a machine's start ended.

Every moment is read where it happened and put on one clock, the host's CLOCK_BOOTTIME:

    machine start   the kernel's record of the machine's process on the host
    firmware        zero of the guest's monotonic clock
    kernel          the guest kernel's own line about starting init
    initrd          system manager's UserspaceTimestampMonotonic
    services        start of containerd's process
    runtime         containerd's word that it serves (ActiveEnterTimestampMonotonic)
    node            the kubelet's journal: the moment it told the apiserver that the node is ready,
                    or registered it, which one whose runtime is up does as ready

The guest's clock is set against the host's by asking for the time and halving the way.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from fleetfoot.errors import FleetfootError
from fleetfoot.machines import process, ssh

if TYPE_CHECKING:
    from fleetfoot.machines.fleet import Fleet

__all__ = ["STAGES", "Ledger", "collect", "host_clock", "machine_start"]

#: Stages in their order, and what each is for a person.
STAGES = {
    "firmware": "firmware or loader",
    "kernel": "kernel",
    "initrd": "initrd",
    "services": "services",
    "runtime": "runtime ready",
    "node": "node ready",
}
_MICROSECOND = 1e-6
_ASKED = 7  # times; the quickest answer counts
_END = "-- end"
# Answers one line with the guest's clock for each line it is sent.
_SCRIPT = f"""
systemctl show --property=UserspaceTimestampMonotonic,FinishTimestampMonotonic
systemctl show --property=ExecMainStartTimestampMonotonic,ActiveEnterTimestampMonotonic \
    containerd.service
dmesg | grep -m1 'as init process'
journalctl --unit=kubelet.service --boot --output=json --output-fields=MESSAGE --quiet --lines=1 \
    --grep='status as it just became ready|Successfully registered node' 2>/dev/null
echo '{_END}'
while read -r _; do read -r up _ < /proc/uptime; echo "$up"; done
"""
_INIT_LINE = re.compile(r"^\[\s*(\d+\.\d+)\] Run .* as init process", re.MULTILINE)
_READY_LINE = re.compile(r'"__MONOTONIC_TIMESTAMP"\s*:\s*"(\d+)"')


@dataclass(frozen=True)
class Ledger:
    """The start of one machine.

    Attributes:
        machine: Its name.
        image: What it booted.
        marks: Stage to its end, in seconds since the machine's start; stages that a machine does
            not have (an nspawn machine has no kernel, a control machine is no node) are absent.
    """

    machine: str
    image: str
    marks: dict[str, float]

    @property
    def lengths(self) -> dict[str, float]:
        """How long each stage took, in seconds."""
        lengths, before = {}, 0.0
        for stage in STAGES:
            if stage in self.marks:
                lengths[stage] = self.marks[stage] - before
                before = self.marks[stage]
        return lengths

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-compatible data."""
        marks = {stage: round(at, 3) for stage, at in self.marks.items()}
        return {"machine": self.machine, "image": self.image, "marks": marks}


def host_clock() -> float:
    """Return the host's clock in seconds since its boot; it never jumps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def machine_start(daemon: process.Daemon) -> float:
    """Return when a machine's process started, on the host's clock, to 1/100 s."""
    return daemon.started / os.sysconf("SC_CLK_TCK")


def collect(fleet: Fleet, name: str) -> Ledger:
    """Read the ledger of a running machine.

    Raises:
        FleetfootError: It does not run, or does not answer on SSH.
    """
    machine = fleet.read(name)
    daemon = process.find(fleet.paths.record(name))
    if machine is None or daemon is None:
        raise FleetfootError(f"machine {name} does not run", "its start cannot be told")
    said, guest_zero = _ask(fleet.paths.stack, machine.address, name)
    start = machine_start(daemon)
    own_kernel = machine.spec.backend != "nspawn"
    marks = marks_of(said, guest_zero - start, own_kernel=own_kernel)
    return Ledger(name, machine.spec.image.name, marks)


def marks_of(said: str, zero: float, *, own_kernel: bool) -> dict[str, float]:
    """Return the marks out of what a machine said.

    Args:
        said: Output of the script, up to its end line.
        zero: Zero of the guest's clock, in seconds since the machine's start.
        own_kernel: Whether the machine has a kernel of its own.
    """
    properties = dict(line.split("=", 1) for line in said.splitlines() if "=" in line.split(" ")[0])

    def moment(key: str) -> float:
        return int(properties.get(key) or 0) * _MICROSECOND

    found: dict[str, float] = {}
    if own_kernel:
        found["firmware"] = 0.0
        if init := _INIT_LINE.search(said):
            found["kernel"] = float(init[1])
        found["initrd"] = moment("UserspaceTimestampMonotonic")
    if runtime := moment("ActiveEnterTimestampMonotonic"):
        found["services"] = moment("ExecMainStartTimestampMonotonic")
        found["runtime"] = runtime
    elif finished := moment("FinishTimestampMonotonic"):
        found["services"] = finished
    if ready := _READY_LINE.search(said):
        found["node"] = int(ready[1]) * _MICROSECOND
    return {stage: found[stage] + zero for stage in STAGES if stage in found}


def _ask(stack: str, address: str, name: str) -> tuple[str, float]:
    """Return what a machine says of its start, and zero of its clock on the host's."""
    argv = [*ssh.command(stack), f"root@{address}", _SCRIPT]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as shell:
        stdin, stdout, stderr = _pipes(shell)
        lines: list[str] = []
        for line in stdout:
            if line.strip() == _END:
                break
            lines.append(line)
        else:
            raise FleetfootError(
                f"machine {name} does not answer: {stderr.read().strip()}",
                "its start cannot be told",
            )
        zeros: list[tuple[float, float]] = []
        for _ in range(_ASKED):
            before = host_clock()
            stdin.write("\n")
            stdin.flush()
            uptime = float(stdout.readline())
            after = host_clock()
            zeros.append((after - before, (before + after) / 2 - uptime))
        stdin.close()
    return "".join(lines), min(zeros)[1]


def _pipes(shell: subprocess.Popen[str]) -> tuple[IO[str], IO[str], IO[str]]:
    if shell.stdin is None or shell.stdout is None or shell.stderr is None:
        raise ValueError("a process without pipes")
    return shell.stdin, shell.stdout, shell.stderr
