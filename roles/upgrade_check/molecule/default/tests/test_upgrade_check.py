"""It looks and leaves everything as it was."""


def test_server_goes_on(host):
    assert host.service("etcd").is_running
