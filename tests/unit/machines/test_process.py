from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.machines import process


def test_a_daemon_is_found_again_and_ended(tmp_path: Path) -> None:
    record = tmp_path / "sleep.process"
    started = process.start(record, ["sleep", "600"], log=tmp_path / "log")
    daemon = process.find(record)
    assert daemon == started
    assert os.getsid(daemon.pid) == daemon.pid
    daemon.end()
    assert process.find(record) is None
    assert not record.exists()


def test_one_that_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    record = tmp_path / "stubborn.process"
    script = "trap '' TERM; echo ready; while :; do read -t 600 < /dev/zero || :; done"
    daemon = process.start(record, ["bash", "-c", script], log=tmp_path / "log")
    while "ready" not in (tmp_path / "log").read_text():
        assert daemon.alive
    daemon.end(signal.SIGTERM, timeout=0.2)
    assert not daemon.alive


def test_a_record_of_another_process_with_the_same_pid_is_not_believed(tmp_path: Path) -> None:
    record = tmp_path / "stale.process"
    own = Path(f"/proc/{os.getpid()}/stat").read_text()
    fields = own.rpartition(")")[2].split()
    fields[19] = str(int(fields[19]) - 1)
    record.write_text(f"{os.getpid()} (python) {' '.join(fields)}")
    assert process.find(record) is None


@pytest.mark.parametrize("content", ["", "half", "{}"])
def test_a_damaged_record_means_not_running(tmp_path: Path, content: str) -> None:
    record = tmp_path / "damaged.process"
    record.write_text(content)
    assert process.find(record) is None


def test_an_early_end_is_told_with_the_log(tmp_path: Path) -> None:
    record, log = tmp_path / "early.process", tmp_path / "log"
    started = process.start(record, ["sh", "-c", "echo no such disk; exit 3"], log=log)
    started.wait(10)
    with pytest.raises(FleetfootError, match=r"machine one ended(.|\n)*no such disk"):
        process.still_running(started, log, "machine one")
