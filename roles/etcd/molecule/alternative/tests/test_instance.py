"""A second cluster beside the first: data, ports and unit of its own."""

ETCDCTL = "set -a; . /etc/etcd-events/ctl.env; etcdctl"


def test_runs(host):
    etcd = host.service("etcd-events")
    assert etcd.is_enabled
    assert etcd.is_running, host.check_output("journalctl -u etcd-events --no-pager -n 50")


def test_keeps_its_own_data(host):
    host.check_output(f"{ETCDCTL} put role-test events")
    assert host.file("/var/lib/etcd-events/member").is_directory
    host.check_output("systemctl restart etcd-events")
    assert host.check_output(f"{ETCDCTL} get --print-value-only role-test") == "events"
    host.check_output(f"{ETCDCTL} del role-test")


def test_gives_free_space_back(host):
    host.check_output("systemctl start etcd-events-defrag.service")
    assert host.service("etcd-events-defrag.timer").is_running
