"""The member knows what the backup knew, goes on above its revisions, and keeps the old data."""

import json

ETCDCTL = "set -a; . /etc/etcd/ctl.env; etcdctl"


def test_knows_what_the_backup_knew(host):
    assert host.check_output(f"{ETCDCTL} get --print-value-only restore-test") == "before"


def test_goes_on_above_what_was_seen(host):
    said = json.loads(host.check_output(f"{ETCDCTL} get restore-test --write-out=json"))
    assert said["header"]["revision"] > 1_000_000_000


def test_keeps_what_was_replaced(host):
    kept = host.check_output("ls -d /var/lib/etcd/before-restore-*").split()
    assert kept
    assert host.file("/var/lib/etcd/member").user == "etcd"


def test_leaves_no_snapshot_behind(host):
    assert not host.file("/var/lib/etcd/snapshot.db").exists
    assert not host.file("/var/lib/etcd/restored").exists
