"""Units that make a node ready come first; what a boot does without is masked."""

import pytest

UNITS = "/usr/local/lib/systemd/system"


@pytest.mark.parametrize(
    "unit",
    [
        "systemd-networkd-wait-online.service",
        "ldconfig.service",
        "NetworkManager-wait-online.service",
    ],
)
def test_is_masked(host, unit):
    assert host.check_output(f"systemctl is-enabled {unit} || true") == "masked"


@pytest.mark.parametrize(
    "link",
    ["multi-user.target.wants/dbus.service", "of-the-administrator.service", "ldconfig.service"],
)
def test_links_of_others_stay(host, link):
    """They were there before, and two runs of the role left them."""
    assert host.file(f"{UNITS}/{link}").is_symlink


def test_mask_taken_off_the_list_is_gone(host):
    assert not host.file(f"{UNITS}/taken-off-the-list.service").exists


def test_role_knows_its_own_masks(host):
    own = host.file("/usr/local/lib/systemd/boot-order.masked").content_string.splitlines()[1:]
    assert "systemd-networkd-wait-online.service" in own
    assert "ldconfig.service" not in own


@pytest.mark.parametrize("unit", ["dbus.service", "ssh.service", "systemd-journald.service"])
def test_vital_units_are_not(host, unit):
    assert host.run(f"systemctl is-enabled {unit}").stdout.strip() != "masked"


def test_the_runtime_gets_the_cpu(host):
    assert host.check_output("systemctl show -P CPUWeight containerd.service") == "1000"


def test_journal_stays_in_memory(host):
    text = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    assert "Storage=volatile" in text
    assert host.service("systemd-journald").is_running


def test_shutdown_does_not_wait_long(host):
    assert host.check_output("systemctl show -P DefaultTimeoutStopUSec") == "15s"
