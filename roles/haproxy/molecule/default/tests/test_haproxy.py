"""One instance: checked configuration, TLS, reload without a gap."""

FETCH = (
    'python3 -c "import ssl,urllib.request as u;'
    "c=ssl.create_default_context(cafile='/etc/kubernetes/pki/ca.crt');c.check_hostname=False;"
    "print(u.urlopen('https://127.0.0.1:8098/',context=c,timeout=5).read().decode())\""
)


def test_answers_with_its_certificate(host):
    assert host.service("haproxy@role-test").is_enabled
    assert host.check_output(FETCH) == "here"


def test_reload_keeps_the_main_process(host):
    before = host.check_output("systemctl show -P MainPID haproxy@role-test")
    host.check_output("systemctl reload haproxy@role-test")
    assert host.check_output("systemctl show -P MainPID haproxy@role-test") == before
    assert host.check_output(FETCH) == "here"


def test_broken_configuration_is_not_loaded(host):
    host.check_output("cp -p /etc/haproxy/role-test.cfg /run/role-test.cfg")
    try:
        host.check_output("echo nonsense >> /etc/haproxy/role-test.cfg")
        assert host.run("systemctl reload haproxy@role-test").failed
        assert host.check_output(FETCH) == "here"
    finally:
        host.check_output("mv /run/role-test.cfg /etc/haproxy/role-test.cfg")


def test_workers_are_not_root(host):
    assert {process.user for process in host.process.filter(comm="haproxy")} >= {"haproxy"}


def test_configuration_is_private(host):
    assert host.file("/etc/haproxy/role-test.cfg").mode == 0o600
    assert host.file("/etc/haproxy/role-test.key").mode == 0o600
