"""What made the host a node is gone; software and configuration stay."""

KUBECTL = "kubectl --kubeconfig=/etc/kubernetes/admin.kubeconfig"


def test_node_object_is_gone(host):
    assert host.check_output(f"{KUBECTL} get node target --ignore-not-found") == ""


def test_kubelet_is_off(host):
    assert not host.service("kubelet").is_enabled
    assert not host.service("kubelet").is_running


def test_identity_is_gone(host):
    assert not host.file("/var/lib/kubelet/pki").exists
    assert not host.file("/etc/kubernetes/kubelet.kubeconfig").exists


def test_software_stays(host):
    assert host.file("/usr/local/bin/kubelet").exists
    assert host.file("/etc/kubernetes/kubelet.yaml").exists
