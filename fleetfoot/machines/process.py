"""Daemons without a service manager: started detached, found again, ended by identity.

A process is known by its pid together with its start time, so that a record left over from before
a reboot never leads to ending a stranger that got the same number.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.paths import private_dir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Daemon", "find", "start", "still_running"]

_STATE, _START_TIME = 0, 19  # fields 3 and 22 of /proc/PID/stat, counted after the command

# The record is the process's own /proc/PID/stat, written by the child before it becomes the
# program: a caller that is killed right after the fork leaves no process that nobody knows of.
# The outer shell ends at once, so that the daemon is nobody's child and never a zombie; the caller
# waits for the end of descriptor $1, which the child closes when the record is written.
_LAUNCHER = """
umask 077
setsid bash -c '
  record=$1; groups=$2; ready=$3; shift 3
  for procs in $groups; do echo $$ > "$procs" || exit 125; done
  cat /proc/$$/stat > "$record.new" && mv "$record.new" "$record" || exit 125
  umask 022
  exec {ready}>&-
  exec "$@"
' launch "$@" &
"""


def _parse(stat: str) -> tuple[int, str, int]:
    """Return pid, state and start time (clock ticks since boot) of a /proc/PID/stat line."""
    pid = int(stat.partition(" ")[0])
    fields = stat.rpartition(")")[2].split()
    return pid, fields[_STATE], int(fields[_START_TIME])


@dataclass(frozen=True)
class Daemon:
    """A process of ours.

    Attributes:
        record: File that remembers it.
        pid: Process id.
        started: Start time in clock ticks since boot.
    """

    record: Path
    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        try:
            _, state, started = _parse(Path(f"/proc/{self.pid}/stat").read_text())
        except (FileNotFoundError, ProcessLookupError):
            return False
        return started == self.started and state not in "ZX"

    @property
    def wall(self) -> float:
        """When it started, in seconds since the epoch, as the clock stood then.

        Not by /proc/stat's btime: that moves when the clock is set, and with it every start.
        """
        return self.record.stat().st_mtime

    def send(self, number: int) -> None:
        """Send a signal, if the process is still this one."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for its end; return whether it ended."""
        if not self.alive:
            return True
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(timeout * 1000))
        finally:
            os.close(fd)

    def end(self, graceful: int = signal.SIGTERM, timeout: float = 20) -> None:
        """End it: `graceful` first, SIGKILL after `timeout` seconds. The record goes, too."""
        self.send(graceful)
        if not self.wait(timeout):
            self.send(signal.SIGKILL)
            self.wait(timeout)
        self.record.unlink(missing_ok=True)


def find(record: Path) -> Daemon | None:
    """Return the live process that `record` remembers, if any."""
    try:
        pid, _, started = _parse(record.read_text())
    except (FileNotFoundError, ValueError, IndexError):
        return None
    daemon = Daemon(record, pid, started)
    return daemon if daemon.alive else None


def start(
    record: Path,
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cgroups: Sequence[Path] = (),
) -> Daemon:
    """Start `argv` in a session of its own and remember it in `record`.

    Args:
        record: Where to remember the process.
        argv: The program and its arguments.
        log: File that takes its output.
        env: Its environment; the caller's if None.
        cgroups: `cgroup.procs` files it joins before it becomes the program.

    Returns:
        The process; it may have ended already (see `still_running`).
    """
    private_dir(record.parent)
    private_dir(log.parent)
    record.unlink(missing_ok=True)
    groups = " ".join(str(group) for group in cgroups)
    written, writer = os.pipe()
    try:
        with log.open("ab") as output:
            subprocess.run(
                ["bash", "-c", _LAUNCHER, "launch", str(record), groups, str(writer), *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                pass_fds=(writer,),
                check=True,
            )
    finally:
        os.close(writer)
    with os.fdopen(written, "rb") as until_closed:
        until_closed.read()
    if not record.exists():
        return Daemon(record, 0, -1)
    pid, _, started = _parse(record.read_text())
    return Daemon(record, pid, started)


def still_running(daemon: Daemon, log: Path, what: str) -> None:
    """Say why a daemon that should run does not.

    Raises:
        FleetfootError: It is gone; the message carries the end of its log.
    """
    if daemon.alive:
        return
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    tail = "\n".join(lines[-10:])
    raise FleetfootError(
        f"{what} ended right after its start",
        f"it is not running; the end of {log.name}:\n{tail}",
        "mend what it complains of and run the command again",
    )
