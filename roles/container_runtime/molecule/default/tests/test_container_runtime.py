"""containerd runs, is of the configuration that was asked for, and holds the sandbox image."""

import tomllib
from shlex import quote

CTR = "/usr/local/bin/ctr --namespace=k8s.io"


def test_runs(host):
    service = host.service("containerd")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u containerd --no-pager -n 50")


def test_configuration_is_what_it_uses(host):
    dump = tomllib.loads(host.check_output("/usr/local/bin/containerd config dump"))
    plugins = dump["plugins"]
    containerd = plugins["io.containerd.cri.v1.runtime"]["containerd"]
    assert containerd["default_runtime_name"] == "crun"
    for name in ("crun", "runc"):
        options = containerd["runtimes"][name]["options"]
        assert options["SystemdCgroup"] is True
        assert host.run(f"{options['BinaryName']} --version").rc == 0
    assert plugins["io.containerd.metadata.v1.bolt"]["no_sync"] is True
    assert plugins["io.containerd.snapshotter.v1.overlayfs"]["mount_options"] == ["volatile"]


def test_sandbox_image_is_there(host):
    assert "localhost/fleetfoot/pause:1" in host.check_output(f"{CTR} images list -q")


def test_interface_for_the_kubelet_is_ready(host):
    lines = host.check_output("/usr/local/bin/ctr plugins list").splitlines()
    states = {tuple(line.split()[:2]): line.split()[-1] for line in lines[1:]}
    assert states["io.containerd.cri.v1", "runtime"] == "ok"
    assert states["io.containerd.grpc.v1", "cri"] == "ok"


def test_unit_is_sound(host):
    assert host.check_output("systemd-analyze verify --man=no containerd.service") == ""


def test_folder_of_credentials_is_private(host):
    assert host.file("/etc/containerd/certs.d").mode == 0o700


def test_store_of_an_unclean_end_is_forgotten(host):
    database = "/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db"
    host.check_output(
        "systemctl stop containerd && echo another-boot > /var/lib/containerd/.in-use"
        f" && echo torn > {database} && systemctl start containerd"
    )
    wait(host, f"{CTR} images list -q | grep -q pause")
    wait(host, "cmp /proc/sys/kernel/random/boot_id /var/lib/containerd/.in-use")


def test_store_outlives_the_end_of_containerd(host):
    before = host.check_output("systemctl show -P MainPID containerd")
    host.check_output("touch /var/lib/containerd/mine")
    host.check_output("systemctl kill --kill-whom=main --signal=KILL containerd")
    running = "systemctl show -P MainPID,SubState containerd | tr '\\n' ' '"
    wait(host, f"{running} | grep running | grep -qv '^{before} '")
    wait(host, f"{CTR} images list -q | grep -q pause")
    # Not just made anew.
    assert host.file("/var/lib/containerd/mine").exists


def test_clean_stop_leaves_no_mark(host):
    host.check_output("systemctl stop containerd")
    assert not host.file("/var/lib/containerd/.in-use").exists
    host.check_output("systemctl start containerd")


def wait(host, command):
    """Wait until a command succeeds."""
    loop = f"until {command}; do sleep 0.2; done"
    host.check_output(f"timeout 60 bash -c {quote(loop)}")
