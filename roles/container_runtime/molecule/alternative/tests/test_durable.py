"""On a host of one's own, containerd loses nothing that it has acknowledged."""

import tomllib


def test_runs(host):
    service = host.service("containerd")
    assert service.is_running, host.check_output("journalctl -u containerd --no-pager -n 50")


def test_configuration_that_it_uses_waits_for_the_disk(host):
    dump = tomllib.loads(host.check_output("/usr/local/bin/containerd config dump"))
    plugins = dump["plugins"]
    assert plugins["io.containerd.metadata.v1.bolt"]["no_sync"] is False
    assert plugins["io.containerd.snapshotter.v1.overlayfs"]["mount_options"] == []
    assert plugins["io.containerd.cri.v1.images"]["image_pull_with_sync_fs"] is True


def test_sandbox_image_is_there(host):
    images = host.check_output("/usr/local/bin/ctr --namespace=k8s.io images list -q")
    assert "localhost/fleetfoot/pause:1" in images


def test_store_is_kept_after_an_unclean_end(host):
    """What is on the disk is whole, so nothing needs to be forgotten."""
    wanted = host.check_output("systemctl show -P Wants,Requires containerd.service")
    assert "containerd-reset" not in wanted
