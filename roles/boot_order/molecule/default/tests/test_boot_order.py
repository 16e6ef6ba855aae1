"""Units that make a node ready come first; what a boot does without is masked."""

import pytest


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
