"""A member that runs, speaks to holders of certificates only, and keeps what it is told."""

import os
import subprocess
import sys
from pathlib import Path

ETCDCTL = "set -a; . /etc/etcd/ctl.env; etcdctl"


def test_runs(host):
    etcd = host.service("etcd")
    assert etcd.is_enabled
    assert etcd.is_running, host.check_output("journalctl -u etcd --no-pager -n 50")


def test_keeps_what_it_is_told(host):
    host.check_output(f"{ETCDCTL} put role-test kept")
    host.check_output("systemctl restart etcd")
    assert host.check_output(f"{ETCDCTL} get --print-value-only role-test") == "kept"
    host.check_output(f"{ETCDCTL} del role-test")


def test_refuses_strangers(host):
    stranger = "etcdctl --endpoints=https://127.0.0.1:2379 --cacert=/etc/etcd/pki/ca.crt"
    assert host.run(f"{stranger} --dial-timeout=2s --command-timeout=2s get x").failed


def test_is_not_root_comes_first_and_data_is_private(host):
    process = host.process.get(comm="etcd")
    assert process.user == "etcd"
    assert process.nice == -10
    data = host.file("/var/lib/etcd")
    assert (data.user, data.mode) == ("etcd", 0o700)
    assert host.file("/etc/etcd/pki/server.key").mode == 0o600


def converge():
    """Apply the role once more, as Molecule does."""
    inventory = Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent
    playbook = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml"
    argv = [Path(sys.executable).with_name("ansible-playbook"), "-i", inventory, playbook]
    argv += ["--skip-tags", "molecule-idempotence-notest"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_new_program_replaces_the_running_one(host):
    def starts():
        host.check_output("journalctl --sync")
        told = host.check_output("journalctl --unit=etcd --output=cat --no-pager")
        return told.count("Started etcd.service")

    before = starts()
    converge()
    assert starts() == before
    host.check_output("cp /usr/local/bin/etcd /run/etcd && echo >> /run/etcd")
    host.check_output("install --mode=0755 /run/etcd /usr/local/bin/etcd && rm /run/etcd")
    converge()
    assert starts() == before + 1
    assert host.service("etcd").is_running


def test_gives_free_space_back(host):
    host.check_output("systemctl start etcd-defrag.service")
    assert host.service("etcd-defrag.timer").is_running


def test_restarts_members_that_run(host):
    def process():
        return host.check_output("systemctl show -P MainPID etcd")

    before = process()
    host.check_output("etcd-restart")
    assert process() != before


def test_restarts_none_while_another_is_away(host):
    host.check_output("cp /etc/etcd/ctl.env /run/ctl.env")
    before = host.check_output("systemctl show -P MainPID etcd")
    try:
        host.check_output("echo OTHER_ENDPOINTS=https://127.0.0.1:1 >> /etc/etcd/ctl.env")
        refused = host.run("ETCD_RESTART_PATIENCE=1 etcd-restart etcd")
        assert refused.failed
        assert "https://127.0.0.1:1 does not serve" in refused.stderr
        assert host.check_output("systemctl show -P MainPID etcd") == before
    finally:
        host.check_output("mv /run/ctl.env /etc/etcd/ctl.env")
