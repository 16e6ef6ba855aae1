"""The archive is whole, private, and holds what the member knew."""

import json
import os
import tarfile
from pathlib import Path

FOLDER = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])


def test_archive_is_private_and_whole():
    archive = FOLDER / "backup.tar"
    assert archive.stat().st_mode & 0o777 == 0o600
    with tarfile.open(archive) as opened:
        names = {Path(member.name).name for member in opened if member.isfile()}
        assert names == {"snapshot.db", "manifest.json", "machine.json"}
        manifest = next(m for m in opened if m.name.endswith("manifest.json"))
        told = json.load(opened.extractfile(manifest))
    assert told["totalKey"] >= 0
    assert told["hash"] > 0


def test_nothing_is_left_beside_it(host):
    assert not list(FOLDER.glob("*.partial*"))
    assert host.check_output("ls -d /tmp/*.etcd-backup 2>/dev/null | wc -l") == "0"
