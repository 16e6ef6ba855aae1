"""It runs with the node's identity and turns Services into rules of the kernel."""


def test_runs(host):
    service = host.service("kube-proxy")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u kube-proxy --no-pager -n 50")


def test_writes_the_apiservers_service_into_the_kernel(host):
    done = host.run(
        "timeout 60 sh -c 'until nft list table ip kube-proxy 2>/dev/null | grep -q 10.91.0.1;"
        " do sleep 0.2; done'"
    )
    assert done.succeeded, host.check_output("journalctl -u kube-proxy --no-pager -n 50")


def test_listens_on_the_loopback_only(host):
    assert host.socket("tcp://127.0.0.1:10249").is_listening
    assert not host.socket("tcp://0.0.0.0:10249").is_listening


def test_unit_is_sound(host):
    said = host.run("systemd-analyze verify --man=no --recursive-errors=no kube-proxy.service")
    assert said.rc == 0, said.stderr
