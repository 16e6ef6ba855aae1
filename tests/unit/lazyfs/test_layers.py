"""Archives are written anew so that nothing of them is lost, and nothing leads out of the root."""

from __future__ import annotations

import io
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.layers import Directory, Rewriter, Tree
from tests.unit.lazyfs.archives import archive

if TYPE_CHECKING:
    from pathlib import Path

XATTR = "SCHILY.xattr."


def rewritten(data: bytes, below: dict[str, Directory | None] | None = None) -> Rewriter:
    rewriter, pieces = Rewriter(below or {}), list[bytes]()
    rewriter.write(io.BytesIO(data), pieces.append)
    vars(rewriter)["result"] = b"".join(pieces)
    return rewriter


def entries(data: bytes, below: dict[str, Directory | None] | None = None) -> dict[str, Any]:
    made = vars(rewritten(data, below))["result"]
    with tarfile.open(fileobj=io.BytesIO(made)) as read:
        return {each.name: each for each in read.getmembers()}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("1.5", "1.500000000"),
        ("1700000000.000000001", "1700000000.000000001"),
        ("7.0", None),
        ("-5.5", None),
        ("1e9", None),
        (str(1 << 63), None),
    ],
)
def test_times_have_nine_digits(text: str, kept: str | None) -> None:
    found = entries(archive(("file", {"pax_headers": {"mtime": text}})))["file"]
    assert found.pax_headers.get("mtime") == kept
    assert found.mtime >= 0


def test_missing_folders_are_made_as_below() -> None:
    tmp = Directory(0o1777, 3, 4, "5", (("user.a", "b"),))
    made = rewritten(archive(("tmp/new/file", {})), {"tmp": tmp})
    assert made.implied == {"tmp": tmp, "tmp/new": Directory()}
    found = entries(archive(("tmp/new/file", {})), {"tmp": tmp})
    assert (found["tmp"].mode, found["tmp"].uid, found["tmp"].gid) == (0o1777, 3, 4)
    assert found["tmp"].pax_headers[f"{XATTR}user.a"] == "b"
    assert found["tmp/new"].mode == 0o755
    assert found["."].mode == 0o755


def test_what_is_no_folder_below_gives_nothing() -> None:
    tree = Tree()
    tree.add(rewritten(archive(("tmp", {"type": tarfile.DIRTYPE, "mode": 0o1777}))).entries)
    tree.add(rewritten(archive((".wh.tmp", {}))).entries)
    assert rewritten(archive(("tmp/file", {})), tree.folders).implied == {"tmp": Directory()}


def test_xattrs_are_kept_byte_for_byte() -> None:
    raw = bytes(range(256)).decode(errors="surrogateescape")
    found = entries(archive(("file", {"pax_headers": {f"{XATTR}security.capability": raw}})))
    kept = found["file"].pax_headers[f"{XATTR}security.capability"]
    assert kept.encode(errors="surrogateescape") == bytes(range(256))


def test_attributes_that_overlayfs_obeys_are_dropped() -> None:
    found = entries(archive(("file", {"pax_headers": {f"{XATTR}trusted.overlay.opaque": "y"}})))
    assert found["file"].pax_headers == {}


def test_settings_for_all_entries_are_ignored() -> None:
    out = io.BytesIO()
    settings = {"mtime": "5.5", f"{XATTR}user.a": "b"}
    kind = tarfile.PAX_FORMAT
    with tarfile.open(fileobj=out, mode="w", format=kind, pax_headers=settings) as made:
        made.addfile(tarfile.TarInfo("one"))
        made.addfile(tarfile.TarInfo("two"))
    for found in (entries(out.getvalue())[name] for name in ("one", "two")):
        assert (found.mtime, found.pax_headers) == (0, {})


@pytest.mark.parametrize("change", [{"mode": 0o600}, {"uid": 1}, {"mtime": 5}])
def test_a_file_with_two_owners_modes_or_times_is_refused(change: dict[str, Any]) -> None:
    link = {"type": tarfile.LNKTYPE, "linkname": "a"}
    again = ("c", {"type": tarfile.LNKTYPE, "linkname": "b"})
    assert "c" in entries(archive(("a", {}), ("b", link), again))
    with pytest.raises(FleetfootError, match="are one file with two"):
        rewritten(archive(("a", {}), ("b", {**link, **change})))


def test_a_device_without_room_for_its_numbers_is_refused() -> None:
    device = {"type": tarfile.BLKTYPE, "pax_headers": {}, "devmajor": 0, "devminor": 0}
    data = bytearray(archive(("disk", device)))
    data[329:337] = b"\x80" + (1 << 30).to_bytes(7, "big")  # its major number, in base 256
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    with pytest.raises(FleetfootError, match="is a device with the numbers"):
        rewritten(bytes(data))


def test_links_and_devices_are_kept() -> None:
    made = entries(
        archive(
            ("a", {}),
            ("dir", {"type": tarfile.DIRTYPE, "mode": 0o700}),
            ("dir/hard", {"type": tarfile.LNKTYPE, "linkname": "./a"}),
            ("dir/soft", {"type": tarfile.SYMTYPE, "linkname": "../../a", "mode": 0o644}),
            ("disk", {"type": tarfile.BLKTYPE, "devmajor": 259, "devminor": 70000}),
            ("pipe", {"type": tarfile.FIFOTYPE}),
        )
    )
    assert made["dir/hard"].linkname == "a"
    assert (made["dir/soft"].linkname, made["dir/soft"].mode) == ("../../a", 0o777)
    assert (made["disk"].devmajor, made["disk"].devminor) == (259, 70000)
    assert made["pipe"].isfifo()


@pytest.mark.parametrize("format_", ["gnu", "pax"])
def test_sparse_files_are_whole(tmp_path: Path, format_: str) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"middle")
    argv = ["tar", "--sparse", f"--format={format_}", "-C", str(tmp_path), "-c", "sparse"]
    packed = subprocess.run(argv, check=True, capture_output=True).stdout
    assert len(packed) < 1 << 20
    made = vars(rewritten(packed))["result"]
    with tarfile.open(fileobj=io.BytesIO(made)) as read:
        content = read.extractfile("sparse")
        assert content is not None
        assert content.read() == (tmp_path / "sparse").read_bytes()


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "./etc//passwd", "etc/../../etc/passwd"]
)
def test_names_stay_below_the_root(name: str) -> None:
    assert set(entries(archive((name, {})))) == {".", "etc", "etc/passwd"}


@pytest.mark.parametrize("target", ["/etc", "etc", "../../../etc", "./x/../etc"])
def test_links_on_the_way_stay_below_the_root(target: str) -> None:
    link = ("link", {"type": tarfile.SYMTYPE, "linkname": target})
    assert "etc/passwd" in entries(archive(link, ("link/passwd", {})))


def test_links_that_lead_in_circles_are_refused() -> None:
    circle = [(name, {"type": tarfile.SYMTYPE, "linkname": other}) for name, other in ("ab", "ba")]
    with pytest.raises(FleetfootError, match="too many symbolic links"):
        rewritten(archive(*circle, ("a/file", {})))


@pytest.mark.parametrize("name", ["a/.wh.", "a/.wh..", "a/.wh..."])
def test_markers_that_remove_no_entry_are_refused(name: str) -> None:
    with pytest.raises(FleetfootError, match="would remove what is no entry"):
        rewritten(archive((name, {})))


def test_what_stands_below_a_file_is_refused() -> None:
    with pytest.raises(FleetfootError, match="is no folder"):
        rewritten(archive(("a", {}), ("a/b", {})))


def test_a_damaged_archive_is_refused_and_not_cut_short() -> None:
    data = bytearray(archive(("a", {}), ("b", {}), data=b"x" * 600))
    second = 512 + 1024
    assert data[second : second + 1] == b"b"
    data[second + 150] ^= 1  # of its checksum
    with pytest.raises(FleetfootError, match="damaged"):
        rewritten(bytes(data))


@pytest.mark.parametrize("cut", [700, 1100])
def test_an_archive_that_was_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(FleetfootError, match="cannot be converted"):
        rewritten(archive(("a", {}), data=b"x" * 1024)[:cut])


def test_an_archive_without_an_end_is_whole() -> None:
    data = archive(("a", {}), ("b", {}), data=b"x" * 600)
    last = 512 + 1024 + 512 + 600  # where the second file's data ends
    made = vars(rewritten(data[:last]))["result"]
    assert made == vars(rewritten(data))["result"]
    with pytest.raises(FleetfootError, match="ends within a file"):
        rewritten(data[: last - 1])


def test_all_of_the_stream_is_read() -> None:
    stream = io.BytesIO(archive(("a", {})) + b"behind the end")
    Rewriter({}).write(stream, lambda _: None)
    assert stream.read() == b""
