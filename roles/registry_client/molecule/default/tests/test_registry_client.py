"""What containerd reads when it pulls from the registry."""

import base64
import json
import os
import tomllib
from pathlib import Path

FACTS = json.loads((Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "machine.json").read_text())
REGISTRY = f"registry.{FACTS['zone']}:5000"
FOLDER = f"/etc/containerd/certs.d/{REGISTRY}"


def test_hosts_file(host):
    file = host.file(f"{FOLDER}/hosts.toml")
    assert file.mode == 0o600
    config = tomllib.loads(file.content_string)
    entry = config["host"][f"https://{REGISTRY}"]
    assert entry["capabilities"] == ["pull", "resolve"]
    password = (Path(FACTS["state_dir"]) / "secrets/registry/puller").read_text().strip()
    given = entry["header"]["Authorization"].removeprefix("Basic ")
    assert base64.b64decode(given).decode() == f"puller:{password}"
    assert host.file(entry["ca"]).exists


def test_folder_is_private(host):
    assert host.file(FOLDER).mode == 0o700


def test_authority_is_the_clusters(host):
    ours = (Path(FACTS["state_dir"]) / "pki/kubernetes/ca.crt").read_text()
    assert host.file(f"{FOLDER}/ca.crt").content_string.strip() == ours.strip()
