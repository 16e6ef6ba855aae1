"""Real builds: the same inputs give the same packages, and a full disk leaves nothing behind."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.images import sbom, tree
from fleetfoot.images.build import build
from fleetfoot.images.definition import Definition
from fleetfoot.locks import alone

CONF = """\
[Distribution]
Distribution=debian
Release=trixie
[Output]
Format=directory
Output=tree
[Content]
Bootable=no
CleanPackageMetadata=no
WithRecommends=no
Packages=
    catatonit
"""


@pytest.fixture
def small(tmp_path: Path) -> Definition:
    folder = tmp_path / "images/small"
    folder.mkdir(parents=True)
    (folder / "mkosi.conf").write_text(CONF)
    (folder / "image.toml").write_text('format = "directory"\n')
    return Definition.load("small", tmp_path)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "full"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)


def test_the_same_inputs_give_the_same_packages(small: Definition, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    manifests = []
    for number in range(2):
        work = home / f"work-{number}"
        work.mkdir()
        target = tmp_path / f"tree-{number}"
        tree.install(small, target, home=home, work=work, progress=print)
        manifests.append(sbom.manifest(sbom.components(target)))
        shutil.rmtree(home / "trees")  # the second one is installed anew, too
    assert "deb\tcatatonit\t" in manifests[0]
    assert manifests[0] == manifests[1]


def test_one_image_at_a_time_installs_packages(small: Definition, tmp_path: Path) -> None:
    # apt's folder of packages is one for all images, and apt is told not to lock it.
    (work := tmp_path / "work").mkdir()
    lock, said = alone(tmp_path / "packages.lock"), list[str]()

    def progress(line: str) -> None:
        said.append(line)
        if "waiting" in line:
            lock.__exit__(None, None, None)

    lock.__enter__()
    tree.install(small, tmp_path / "tree", home=tmp_path, work=work, progress=progress)
    assert said[:2] == [
        "small: waiting while another image's packages are installed",
        "small: installing packages",
    ]


def test_a_full_disk_is_told_and_leaves_nothing(full_disk: Path, tmp_path: Path) -> None:
    with pytest.raises(FleetfootError, match="is full") as told:
        build("sample", cache=full_disk, artifacts=tmp_path)
    assert "FLEETFOOT_CACHE" in str(told.value)
    assert [path.name for path in (full_disk / "images").iterdir()] == ["sample.lock"]


def test_a_disk_that_fills_up_ends_the_installation(full_disk: Path, small: Definition) -> None:
    (work := full_disk / "work").mkdir()
    with pytest.raises(OSError, match=r"No space left on device: \d+ MiB free"):
        tree.install(small, full_disk / "tree", home=full_disk, work=work, progress=print)


def test_an_unknown_key_in_a_definition_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "images/odd"
    folder.mkdir(parents=True)
    (folder / "image.toml").write_text('format = "floppy"\nspeed = 9\n')
    with pytest.raises(FleetfootError, match="unknown key speed; format must be one of"):
        Definition.load("odd", tmp_path)


def test_a_tree_with_a_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etc/ssh").mkdir(parents=True)
    (tmp_path / "etc/machine-id").write_text("")
    (tmp_path / "etc/ssh/ssh_host_ed25519_key").write_text("key\n")
    (tmp_path / "etc/shadow").write_text("root:$y$hash:1::::::\n")
    with pytest.raises(FleetfootError, match="etc/shadow: root, etc/ssh/ssh_host_ed25519_key"):
        tree.check_no_secrets(tmp_path)
    tree.scrub(tmp_path)
    assert not (tmp_path / "etc/ssh/ssh_host_ed25519_key").exists()
