"""Access for administrators, on the machine and on the controller; secrets encrypted in etcd."""

import json
import os
import subprocess
from pathlib import Path

import pytest

FACTS = json.loads((Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "machine.json").read_text())
KUBECTL = "kubectl --kubeconfig=/etc/kubernetes/admin.kubeconfig"


def test_operator_reaches_the_cluster_from_the_controller():
    kubeconfig = Path(FACTS["state_dir"]) / "kubeconfig"
    assert kubeconfig.stat().st_mode & 0o777 == 0o600
    kubectl = [Path(FACTS["artifacts_dir"]) / "kubectl", f"--kubeconfig={kubeconfig}"]
    done = subprocess.run([*kubectl, "auth", "whoami"], capture_output=True, text=True, check=True)
    assert "fleetfoot:operator" in done.stdout


def test_the_machine_is_an_operator_and_no_master(host):
    said = host.check_output(f"{KUBECTL} auth whoami --output=json")
    assert "fleetfoot:operators" in json.loads(said)["status"]["userInfo"]["groups"]
    assert "system:masters" not in said
    for certificate in host.check_output("find /etc/kubernetes -name '*.crt'").splitlines():
        assert "system:masters" not in host.check_output(
            f"openssl x509 -noout -subject -in {certificate}"
        )
    assert not host.run("ls /etc/kubernetes/pki/first.*").stdout


@pytest.mark.parametrize(
    ("verb", "what", "who", "group"),
    [
        ("list", "endpointslices.discovery.k8s.io", "fleetfoot:coredns", ""),
        ("get", "nodes", "fleetfoot:kubelet-csr-approver", ""),
        ("list", "services", "system:node:some", "system:nodes"),
        ("get", "nodes/proxy", "kube-apiserver-kubelet-client", ""),
    ],
)
def test_may(host, verb, what, who, group):
    groups = f"--as-group={group}" if group else ""
    command = f"{KUBECTL} auth can-i {verb} {what} -A --as={who} {groups}"
    assert host.run(command).stdout.strip() == "yes"


@pytest.mark.parametrize(
    ("verb", "what", "who"),
    [
        ("get", "secrets", "fleetfoot:coredns"),
        ("delete", "nodes", "fleetfoot:kubelet-csr-approver"),
        ("list", "pods", "kube-apiserver-kubelet-client"),
    ],
)
def test_may_not(host, verb, what, who):
    assert host.run(f"{KUBECTL} auth can-i {verb} {what} -A --as={who}").stdout.strip() == "no"


def test_secrets_are_encrypted_in_etcd(host):
    tls = "--cacert=ca.crt --cert=server.crt --key=server.key"
    host.check_output(f"{KUBECTL} create secret generic role-test --from-literal=word=geheim")
    try:
        stored = host.check_output(
            f"cd /etc/etcd/pki && etcdctl --endpoints=https://127.0.0.1:2379 {tls}"
            " get /registry/secrets/default/role-test --print-value-only | head -c 40 | cat -v"
        )
        assert stored.startswith("k8s:enc:")
    finally:
        host.check_output(f"{KUBECTL} delete secret role-test")
