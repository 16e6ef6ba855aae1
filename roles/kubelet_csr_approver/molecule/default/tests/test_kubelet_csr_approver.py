"""Requests of a node for its own addresses are approved; any other is not."""

import json

import pytest

KUBECTL = "kubectl --kubeconfig=/etc/kubernetes/admin.kubeconfig"

FOLDER = "/run/role-test-csr"
NAME = "role-test-csr"
OWN, FOREIGN = "10.99.254.7", "10.99.254.8"
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME}}
STATUS = {"status": {"addresses": [{"type": "InternalIP", "address": OWN}]}}


@pytest.fixture(scope="module")
def node(host):
    """A node with one address, and its client certificate signed by the cluster's authority."""
    ca = "-CA /etc/kubernetes/pki/ca.crt -CAkey /etc/kubernetes/controller-manager/ca.key"
    host.check_output(
        f"install -d -m 0700 {FOLDER} && cd {FOLDER}"
        " && openssl req -new -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256"
        f" -keyout node.key -subj /O=system:nodes/CN=system:node:{NAME} -out node.csr"
        f" && openssl x509 -req -in node.csr {ca} -days 1 -out node.crt"
    )
    host.check_output(f"echo '{json.dumps(NODE)}' | {KUBECTL} apply -f -")
    patch = f"{KUBECTL} patch node {NAME} --subresource=status --type=merge"
    host.check_output(f"{patch} --patch='{json.dumps(STATUS)}'")
    yield f"{KUBECTL} --client-certificate={FOLDER}/node.crt --client-key={FOLDER}/node.key"
    host.check_output(f"{KUBECTL} delete csr {NAME}-own {NAME}-foreign --ignore-not-found")
    host.check_output(f"{KUBECTL} delete node {NAME} --ignore-not-found")
    host.check_output(f"rm -r {FOLDER}")


def ask(host, kubectl, name, address):
    """Ask for a serving certificate for `address`, as the node."""
    text = host.check_output(
        f"cd {FOLDER} && openssl req -new -key node.key -subj /O=system:nodes/CN=system:node:{NAME}"
        f" -addext subjectAltName=IP:{address} | base64 -w0"
    )
    request = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "request": text,
            "signerName": "kubernetes.io/kubelet-serving",
            "usages": ["digital signature", "server auth"],
        },
    }
    host.check_output(f"echo '{json.dumps(request)}' | {kubectl} create -f -")


def test_runs(host):
    service = host.service("kubelet-csr-approver")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u kubelet-csr-approver -n 50")


def test_own_address_is_approved_and_foreign_one_is_not(host, node):
    """The foreign one comes first: when the second is approved, it had its turn."""
    ask(host, node, f"{NAME}-foreign", FOREIGN)
    ask(host, node, f"{NAME}-own", OWN)
    host.check_output(f"{KUBECTL} wait csr/{NAME}-own --for=condition=Approved --timeout=30s")
    kinds = "jsonpath='{.status.conditions[*].type}'"
    assert "Approved" not in host.check_output(f"{KUBECTL} get csr {NAME}-foreign -o {kinds}")
