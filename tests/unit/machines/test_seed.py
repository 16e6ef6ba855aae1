"""NoCloud disks: the same files as the serverless image gets, and nobody else may read them."""

import subprocess
from pathlib import Path

import yaml

from fleetfoot.machines import seed
from fleetfoot.machines.network import NetworkSpec

NETWORK = NetworkSpec("t", "10.95.0.0/24", "10.95.255.0/30", "t.fleetfoot.internal")
HOST_KEY = "ssh-ed25519 AAAA worker-1"
CREDENTIALS = {
    "system.hostname": "worker-1",
    "ssh.authorized_keys.root": "ssh-ed25519 BBBB operator",
    "fleetfoot.ssh-host-key": "private\n",
    "fleetfoot.resolv-conf": "nameserver 10.95.0.1\n",
    "fleetfoot.cluster-ca": "authority\n",
    "fleetfoot.kubelet-kubeconfig": "kubeconfig\n",
    "fleetfoot.registry-ca": "authority\n",
    "tmpfiles.extra": (
        "d /etc/x 0700 root root -\nf^ /etc/x/ca.crt 0644 root root - fleetfoot.registry-ca\n"
    ),
}


def user_data() -> dict[str, object]:
    text = seed.user_data(HOST_KEY, CREDENTIALS)
    assert text.startswith("#cloud-config\n")
    data: dict[str, object] = yaml.safe_load(text)
    return data


def test_every_credential_becomes_its_files() -> None:
    files = user_data()["write_files"]
    assert isinstance(files, list)
    assert {file["path"]: (file["permissions"], file["content"]) for file in files} == {
        "/etc/kubernetes/pki/ca.crt": ("0644", "authority\n"),
        "/etc/kubernetes/kubelet.kubeconfig": ("0600", "kubeconfig\n"),
        "/etc/kubernetes/kube-proxy.kubeconfig": ("0600", "kubeconfig\n"),
        "/etc/x/ca.crt": ("0644", "authority\n"),
    }


def test_without_files_there_is_no_empty_list() -> None:
    bare = {key: CREDENTIALS[key] for key in ("ssh.authorized_keys.root", "fleetfoot.ssh-host-key")}
    assert "write_files" not in yaml.safe_load(seed.user_data(HOST_KEY, bare))


def test_the_pinned_host_key_is_the_only_one() -> None:
    assert user_data()["ssh_keys"] == {
        "ed25519_private": "private\n",
        "ed25519_public": HOST_KEY,
    }


def test_the_disk_is_private_and_reads_back(tmp_path: Path) -> None:
    target = tmp_path / "seed.iso"
    for _ in range(2):  # made once, kept afterwards
        seed.write_seed(
            target,
            name="worker-1",
            host_key=HOST_KEY,
            network=NETWORK,
            address="10.95.0.3",
            credentials=CREDENTIALS,
        )
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["seed.iso"]
    out = tmp_path / "out"
    subprocess.run(
        ["xorriso", "-osirrox", "on", "-indev", str(target), "-extract", "/", str(out)],
        check=True,
        capture_output=True,
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "meta-data",
        "network-config",
        "user-data",
    ]
    network = yaml.safe_load((out / "network-config").read_text())
    assert network["ethernets"]["uplink"]["addresses"] == ["10.95.0.3/24"]
    assert yaml.safe_load((out / "meta-data").read_text())["local-hostname"] == "worker-1"
