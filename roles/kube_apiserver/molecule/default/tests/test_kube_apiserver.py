"""An apiserver that is ready, knows nobody without a certificate, and audits."""

from tests.molecule.ask import ask

PKI = "/etc/kubernetes/pki/apiserver-online"


def address(host):
    return host.ansible.get_variables()["ansible_host"]


def test_runs(host):
    service = host.service("kube-apiserver@online")
    assert service.is_enabled
    assert service.is_running, host.check_output("journalctl -u kube-apiserver@online -n 50")
    process = host.process.get(comm="kube-apiserver")
    assert process.user == "kube-apiserver"
    assert process.nice == -10


def test_is_ready(host):
    assert ask(host, 7443, "/readyz", f"{PKI}/kubelet-client") == "200 ok"


def test_knows_nobody_without_a_certificate(host):
    assert ask(host, 7443, "/readyz") == "401"
    assert ask(host, 7443, "/version") == "401"


def test_secrets_are_private(host):
    for path in (
        "/etc/kubernetes/apiserver/encryption.yaml",
        "/etc/kubernetes/apiserver/service-account.key",
        f"{PKI}/server.key",
        f"{PKI}/etcd-client.key",
    ):
        file = host.file(path)
        assert (file.user, file.mode) == ("kube-apiserver", 0o600), path


def test_audits(host):
    log = host.file("/var/log/kubernetes/audit-online.log")
    assert log.user == "kube-apiserver"
    assert log.size > 0


def test_listens_on_its_address_only(host):
    assert host.socket(f"tcp://{address(host)}:7443").is_listening
    assert not host.socket("tcp://0.0.0.0:7443").is_listening
