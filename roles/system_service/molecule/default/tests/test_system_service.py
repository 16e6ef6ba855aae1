"""The service that converge.yml describes: runs, as its own user, in a tight sandbox."""

import pytest


def test_runs(host):
    service = host.service("role-test")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u role-test --no-pager -n 30")
    assert host.socket("tcp://127.0.0.1:8099").is_listening


def test_runs_as_its_user(host):
    process = host.process.get(user="role-test")
    assert "http.server" in process.args
    assert host.user("role-test").shell == "/usr/sbin/nologin"


@pytest.mark.parametrize(
    ("directive", "value"),
    [
        ("CapabilityBoundingSet", ""),
        ("NoNewPrivileges", "yes"),
        ("PrivateTmp", "yes"),
        ("ProtectHome", "yes"),
        ("LimitNOFILE", "4096"),
        ("ProtectSystem", "full"),
    ],
)
def test_sandbox(host, directive, value):
    """The last two are the caller's: its lines win."""
    assert host.check_output(f"systemctl show -P {directive} role-test") == value


def test_unit_is_sound(host):
    assert host.check_output("systemd-analyze verify --man=no role-test.service") == ""
