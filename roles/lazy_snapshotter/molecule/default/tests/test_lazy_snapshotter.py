"""The services run, containerd knows the snapshotter, and ordinary images are unpacked by it."""

import json
import tomllib
from shlex import quote

import pytest

CTR = "/usr/local/bin/ctr --namespace=k8s.io"
UNITS = ("fleetfoot-lazy", "fleetfoot-lazy-sectors")


@pytest.mark.parametrize("unit", UNITS)
def test_runs(host, unit):
    service = host.service(unit)
    assert service.is_enabled
    assert service.is_running, host.check_output(f"journalctl -u {unit} --no-pager -n 50")


@pytest.mark.parametrize("unit", UNITS)
def test_unit_is_sound(host, unit):
    assert host.check_output(f"systemd-analyze verify --man=no {unit}.service") == ""


def test_what_mounts_lazily_is_loaded_at_boot(host):
    # Machines of this kind have their host's kernel: nothing can be loaded here.
    lines = host.file("/etc/modules-load.d/50-fleetfoot-lazy.conf").content_string.splitlines()
    modules = [line for line in lines if not line.startswith("#")]
    assert modules == ["nbd", "erofs", "dm_mod", "loop"]


def test_udev_does_not_look_into_layers(host):
    rules = host.file("/etc/udev/rules.d/59-fleetfoot-lazy.rules").content_string
    flag = "UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG"
    assert rules.count(f'ENV{{{flag}}}="1"') == 2
    # Rules that look in are after it, and go by this.
    stock = "/usr/lib/udev/rules.d/60-persistent-storage.rules"
    if host.file(stock).exists:
        assert flag in host.file(stock).content_string


def test_the_snapshotter_may_make_devices(host):
    asked = "-P PrivateDevices,DevicePolicy,DeviceAllow"
    said = host.check_output(f"systemctl show {asked} fleetfoot-lazy").split()
    assert sorted(said) == ["auto", "no"]
    allowed = host.check_output("systemctl show -P CapabilityBoundingSet fleetfoot-lazy")
    assert "cap_sys_admin" in allowed.split()


def test_containerd_uses_it(host):
    dump = tomllib.loads(host.check_output("/usr/local/bin/containerd config dump"))
    plugins = dump["plugins"]
    assert plugins["io.containerd.cri.v1.images"]["snapshotter"] == "fleetfoot-lazy"
    # Through the transfer service; otherwise containerd says why not.
    said = host.check_output("journalctl -u containerd --no-pager --boot --output=cat")
    assert "Falling back to local image pull" not in said.rpartition("starting containerd")[2]
    transfer = plugins["io.containerd.transfer.v1.local"]
    assert [each["snapshotter"] for each in transfer["unpack_config"]] == ["fleetfoot-lazy"]
    assert transfer["config_path"] == "/etc/containerd/certs.d"
    lines = host.check_output("/usr/local/bin/ctr plugins list").splitlines()
    states = {tuple(line.split()[:2]): line.split()[-1] for line in lines[1:]}
    assert states["io.containerd.snapshotter.v1", "fleetfoot-lazy"] == "ok"
    assert states["io.containerd.grpc.v1", "cri"] == "ok"


def test_an_ordinary_image_is_unpacked(host):
    # The sandbox image: the one that is here without a registry. (Nothing is mounted: the root of a
    # machine of this kind is an overlay, on which the kernel wants no other.)
    snapshots = f"{CTR} snapshots --snapshotter=fleetfoot-lazy"
    archive = "/usr/local/share/fleetfoot/sandbox.tar"
    host.check_output(f"{CTR} images import --local --snapshotter=fleetfoot-lazy {archive}")
    _, *rows = host.check_output(f"{snapshots} list").splitlines()
    (chain,) = [row.split()[0] for row in rows if row.split()[-1] == "Committed"]
    (mount,) = json.loads(host.check_output(f"{snapshots} view --mounts seen {chain}"))
    try:
        folder = mount["Source"]
        assert folder.startswith("/var/lib/fleetfoot-lazy/snapshots/"), mount
        found = host.check_output(f"find {folder} -type f -perm /111")
        assert found == f"{folder}/pause"
    finally:
        host.check_output(f"{snapshots} remove seen")


def test_folders_are_private(host):
    for folder in ("/var/lib/fleetfoot-lazy", "/run/fleetfoot-lazy"):
        assert host.file(folder).mode == 0o700
    assert host.file("/run/fleetfoot-lazy/snapshotter.sock").mode & 0o077 == 0


def test_a_killed_service_comes_back(host):
    for unit in UNITS:
        before = host.check_output(f"systemctl show -P MainPID {unit}")
        host.check_output(f"systemctl kill --signal=KILL {unit}")
        running = f"systemctl show -P MainPID,SubState {unit} | tr '\\n' ' '"
        wait(host, f"{running} | grep running | grep -qv '^{before} '")
    wait(host, f"{CTR} snapshots --snapshotter=fleetfoot-lazy list")


def test_the_server_says_what_happened(host):
    wait(host, "test -s /run/fleetfoot-lazy/stats.json")
    said = json.loads(host.check_output("cat /run/fleetfoot-lazy/stats.json"))
    assert said == {"counts": {}, "layers": {}}
    wait(host, "grep -q fleetfoot_lazy_fetched_bytes_total /run/fleetfoot-lazy/metrics.prom")
    assert json.loads(host.check_output("cat /run/fleetfoot-lazy/status.json"))["images"] == []


def test_both_stay_within_their_memory(host):
    used = 0
    for unit in UNITS:
        pid = host.check_output(f"systemctl show -P MainPID {unit}")
        rollup = host.check_output(f"cat /proc/{pid}/smaps_rollup")
        used += int(next(line for line in rollup.splitlines() if "Pss:" in line).split()[1])
    assert used < 80 << 10, f"{used} KiB"


def wait(host, command):
    """Wait until a command succeeds."""
    loop = f"until {command}; do sleep 0.2; done"
    host.check_output(f"timeout 60 bash -c {quote(loop)}")
