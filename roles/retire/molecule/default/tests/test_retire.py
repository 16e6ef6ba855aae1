"""What the machine has no longer is off; the rest goes on."""


def test_wanted_service_goes_on(host):
    assert host.service("retire-test@kept").is_running


def test_other_service_is_off(host):
    assert not host.service("retire-test@gone").is_running
    assert not host.service("retire-test@gone").is_enabled


def test_its_unit_file_stays(host):
    assert host.file("/etc/systemd/system/retire-test@.service").exists


def test_keys_are_gone_and_nothing_else(host):
    assert host.file("/etc/retire-test").listdir() == ["a.cfg"]


def test_it_had_its_key_until_it_was_off(host):
    assert host.run("systemctl is-failed --quiet retire-test@gone").failed
