"""The node takes no pods."""

KUBECTL = "kubectl --kubeconfig=/etc/kubernetes/admin.kubeconfig"


def test_node_is_cordoned(host):
    node = host.check_output(f"{KUBECTL} get node target -o jsonpath={{.spec.unschedulable}}")
    assert node == "true"
