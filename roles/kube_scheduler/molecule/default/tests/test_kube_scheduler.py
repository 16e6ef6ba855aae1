"""It runs, leads, and gives a pod a node."""

import json

KUBECTL = "kubectl --kubeconfig=/etc/kubernetes/admin.kubeconfig"

NAME = "role-test-scheduler"
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME, "labels": {"for": NAME}}}
ROOM = {"cpu": "2", "memory": "2Gi", "pods": "9", "ephemeral-storage": "9Gi"}
STATUS = {"status": {"capacity": ROOM, "allocatable": ROOM}}
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": NAME},
    "spec": {
        "automountServiceAccountToken": False,
        "containers": [{"name": "c", "image": "registry.invalid/none:1"}],
        "nodeSelector": {"for": NAME},
        "tolerations": [{"operator": "Exists"}],
    },
}


def test_runs(host):
    service = host.service("kube-scheduler")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u kube-scheduler --no-pager -n 50")


def test_gives_a_pod_a_node(host):
    host.check_output(f"{KUBECTL} wait serviceaccount/default --for=create --timeout=60s")
    try:
        host.check_output(f"echo '{json.dumps(NODE)}' | {KUBECTL} apply -f -")
        patch = f"{KUBECTL} patch node {NAME} --subresource=status --type=merge"
        host.check_output(f"{patch} --patch='{json.dumps(STATUS)}'")
        host.check_output(f"echo '{json.dumps(POD)}' | {KUBECTL} apply -f -")
        host.check_output(
            f"{KUBECTL} wait pod/{NAME} --timeout=60s --for=jsonpath='{{.spec.nodeName}}'={NAME}"
        )
    finally:
        host.check_output(f"{KUBECTL} delete pod {NAME} --force --ignore-not-found")
        host.check_output(f"{KUBECTL} delete node {NAME} --ignore-not-found")
