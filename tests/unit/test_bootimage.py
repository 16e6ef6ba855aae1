"""What `fleetfoot image list` and `image prune` see of the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer.testing import CliRunner

from fleetfoot.cli import app
from fleetfoot.paths import cache_dir
from fleetfoot.stack import bootimage

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def image(cache: Path, name: str) -> Path:
    folder = cache / "images" / name
    folder.mkdir(parents=True)
    (folder / "image.json").write_text("{}")
    (folder / "disk.raw").write_bytes(b"x" * (1 << 20))
    return folder


def test_prune_keeps_what_is_current_or_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = cache_dir() / "programs"
    monkeypatch.setenv("FLEETFOOT_CACHE", str(tmp_path))
    (tmp_path / "programs").symlink_to(programs)
    key = next(row["key"] for row in bootimage.known() if row["name"] == "sample")
    current = image(tmp_path, f"sample-{key}")
    used, old = image(tmp_path, "sample-0000000000000001"), image(tmp_path, "gone-2")
    building = tmp_path / "images/.sample-17"
    building.mkdir()
    with (used / "disk.raw").open("rb"):
        said = CliRunner().invoke(app, ["image", "prune"], catch_exceptions=False).output
    assert said == "gone-2: 1 MiB freed\n"
    assert (current.exists(), used.exists(), old.exists()) == (True, True, False)
    assert building.exists()
