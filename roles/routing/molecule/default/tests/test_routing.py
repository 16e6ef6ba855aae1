"""BIRD runs, speaks OSPF on the machine's network, and keeps its key to itself."""


def test_runs(host):
    service = host.service("bird")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u bird --no-pager -n 50")


def test_speaks_ospf(host):
    said = host.check_output("birdc show ospf interface fleetfoot")
    assert "Interface host0" in said
    assert "Type: broadcast" in said


def test_configuration_is_sound(host):
    host.check_output("/usr/sbin/bird -p -c /etc/bird/bird.conf")


def test_key_is_private(host):
    key = host.file("/etc/bird/key.conf")
    assert (key.user, key.mode) == ("bird", 0o600)
    assert "algorithm hmac sha256" in key.content_string


def test_process_is_not_root(host):
    assert host.process.get(comm="bird").user == "bird"


def test_reload_keeps_it_running(host):
    before = host.check_output("systemctl show -P MainPID bird")
    host.check_output("systemctl reload bird")
    assert host.check_output("systemctl show -P MainPID bird") == before
