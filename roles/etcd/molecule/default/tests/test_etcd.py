"""A member that runs, speaks TLS only, and keeps what it is told."""

ETCDCTL = (
    "etcdctl --cacert=/etc/etcd/pki/ca.crt --cert=/etc/etcd/pki/server.crt"
    " --key=/etc/etcd/pki/server.key --endpoints=https://127.0.0.1:2379"
)


def test_runs(host):
    etcd = host.service("etcd")
    assert etcd.is_enabled
    assert etcd.is_running, host.check_output("journalctl -u etcd --no-pager -n 50")
