"""A host of one's own gets the kernel's settings; how its file systems are mounted is its own."""


def test_settings(host):
    text = host.file("/etc/sysctl.d/60-kernel-writeback.conf").content_string
    assert "vm.dirty_ratio = 60" in text


def test_no_mount_is_touched(host):
    assert "remount" not in host.check_output("systemctl cat kernel-writeback.service")


def test_unit_is_sound(host):
    said = host.run("systemd-analyze verify --man=no kernel-writeback.service")
    assert said.stdout + said.stderr == ""
    host.check_output("systemctl daemon-reload && systemctl restart kernel-writeback")
