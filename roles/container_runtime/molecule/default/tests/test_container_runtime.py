"""containerd runs, is of the configuration that was asked for, and holds the sandbox image."""

import tomllib

CTR = "/usr/local/bin/ctr --namespace=k8s.io"


def test_runs(host):
    service = host.service("containerd")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u containerd --no-pager -n 50")


def test_configuration_is_what_it_uses(host):
    dump = tomllib.loads(host.check_output("/usr/local/bin/containerd config dump"))
    plugins = dump["plugins"]
    runc = plugins["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]["runc"]
    assert runc["options"]["SystemdCgroup"] is True
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
