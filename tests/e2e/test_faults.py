"""Faults while an environment is made: a full disk, a run that is cut off half-way."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fleetfoot.paths import cache_dir
from tests.e2e.stacks import BIN, PROJECT, Stack, assert_nothing_left, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

_DISK_MIB = 3400  # the builder asks for 3 GiB before it begins
_LEFT_MIB = 160  # enough for package lists, not for the packages


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with the node software but without images."""
    image, mount = tmp_path / "disk", tmp_path / "cache"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(_DISK_MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        (mount / "programs").symlink_to(cache_dir() / "programs")
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_disk_that_fills_up_leaves_no_half_built_image(small_disk: Path) -> None:
    argv = [str(BIN / "fleetfoot"), "image", "build", "sample"]
    environment = {**os.environ, "FLEETFOOT_CACHE": str(small_disk)}
    build = subprocess.Popen(
        argv,
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    images = small_disk / "images"
    eventually(lambda: list(images.glob(".sample-*/*")) or build.poll() is not None, pause=0.05)
    free = os.statvfs(small_disk)
    with (small_disk / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize - (_LEFT_MIB << 20))
    said = " ".join(build.communicate(timeout=600)[0].split())
    assert build.returncode != 0
    assert "is full" in said, said
    assert "nothing of it was left behind" in said
    assert "Traceback" not in said
    assert not list(images.glob("sample-*/"))
    assert not list(images.glob(".sample-*"))


@pytest.fixture
def control_only() -> Iterator[Stack]:
    with Stack("e2e-half", 74) as stack:
        stack.control_only()
        yield stack


def test_down_after_a_half_made_up_leaves_nothing(control_only: Stack) -> None:
    run = control_only.start_up()
    record = control_only.paths.record("control-1")
    eventually(lambda: record.exists() or run.poll() is not None, timeout=600, pause=0.1)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    done = control_only.down()
    assert done.returncode == 0, done.stdout
    assert_nothing_left(control_only.name, "10.74.")


@pytest.mark.long
def test_ten_kills_lose_nothing(control_only: Stack) -> None:
    control_only.kill_runs(10)
    control_only.fleetfoot("up")
    status = control_only.status()
    assert [row["ready"] for row in status["machines"] + status["apiservers"]] == [True] * 3
