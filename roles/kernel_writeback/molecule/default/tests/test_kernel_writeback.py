"""What the next boot will read: settings that were asked for, none that are absent."""

import pytest

ASKED = {
    "vm.dirty_background_ratio": 40,
    "vm.dirty_expire_centisecs": 6000,
    "vm.dirty_ratio": 60,
    "vm.dirty_writeback_centisecs": 1500,
}


def settings(host):
    lines = host.file("/etc/sysctl.d/60-kernel-writeback.conf").content_string.splitlines()
    pairs = [line.split(" = ") for line in lines if line and not line.startswith("#")]
    return {name: int(value) for name, value in pairs}


def test_settings(host):
    assert settings(host) == ASKED


@pytest.mark.parametrize("name", ["vm.dirty_bytes", "vm.dirty_background_bytes"])
def test_absent_settings_are_not_written(host, name):
    assert name not in settings(host)


@pytest.mark.parametrize("name", ASKED)
def test_kernel_has_such_a_setting(host, name):
    assert host.file(f"/proc/sys/{name.replace('.', '/')}").exists


def test_mount_options_are_set_at_boot(host):
    unit = host.service("kernel-writeback")
    assert unit.is_enabled
    text = host.check_output("systemctl cat kernel-writeback.service")
    assert "-o remount,noatime,nobarrier,commit=60 /" in text
    assert host.check_output("systemd-analyze verify --man=no kernel-writeback.service") == ""
