"""Programs that run here and are of the pinned version."""

from pathlib import Path

import pytest
import yaml

DEFAULTS = Path(__file__).parents[3] / "defaults/main.yml"
VERSIONS = yaml.safe_load(DEFAULTS.read_text())["node_software_versions"]


@pytest.mark.parametrize(
    ("command", "project"),
    [
        ("/usr/local/bin/kubectl version --client=true", "kubernetes"),
        ("/usr/local/bin/etcdctl version", "etcd"),
        ("/usr/lib/cni/portmap --version", "cni-plugins"),
    ],
)
def test_version(host, command, project):
    done = host.run(command)
    assert VERSIONS[project] in done.stdout + done.stderr


@pytest.mark.parametrize("path", ["/usr/local/bin/kubectl", "/usr/lib/cni/portmap"])
def test_file(host, path):
    file = host.file(path)
    assert (file.user, file.group, file.mode) == ("root", "root", 0o755)
