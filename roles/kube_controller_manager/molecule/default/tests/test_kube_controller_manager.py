"""It runs, leads, and does what the cluster needs of it: ranges for nodes, service accounts."""

KUBECTL = "kubectl --kubeconfig=/etc/kubernetes/admin.kubeconfig"

NODE = '{"apiVersion":"v1","kind":"Node","metadata":{"name":"role-test-kcm"}}'


def test_runs(host):
    service = host.service("kube-controller-manager")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u kube-controller-manager -n 50")


def test_leads(host):
    host.check_output(
        f"{KUBECTL} -n kube-system wait lease/kube-controller-manager --timeout=60s"
        " --for=jsonpath='{.spec.holderIdentity}'"
    )


def test_gives_a_node_its_range(host):
    host.check_output(f"echo '{NODE}' | {KUBECTL} apply -f -")
    try:
        host.check_output(
            f"{KUBECTL} wait node/role-test-kcm --timeout=60s --for=jsonpath='{{.spec.podCIDR}}'"
        )
        cidr = host.check_output(
            f"{KUBECTL} get node role-test-kcm -o jsonpath='{{.spec.podCIDR}}'"
        )
        assert cidr.startswith("10.90.")
        assert cidr.endswith("/24")
    finally:
        host.check_output(f"{KUBECTL} delete node role-test-kcm")


def test_makes_service_accounts(host):
    host.check_output(f"{KUBECTL} wait serviceaccount/default --for=create --timeout=60s")


def test_keys_are_private(host):
    for name in ("ca.key", "client.key", "service-account.key"):
        file = host.file(f"/etc/kubernetes/controller-manager/{name}")
        assert (file.user, file.mode) == ("kube-controller-manager", 0o600), name
