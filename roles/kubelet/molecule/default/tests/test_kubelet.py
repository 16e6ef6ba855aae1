"""Configuration that this kubelet understands, and an identity of the node's own."""

import datetime

import yaml
from cryptography import x509

CURRENT = "/var/lib/kubelet/pki/kubelet-client-current.pem"


def test_identity(host):
    """One file with certificate and key, which the kubelet replaces when it renews."""
    link = host.file(CURRENT)
    assert link.is_symlink
    assert host.file(link.linked_to).mode == 0o600
    certificate = x509.load_pem_x509_certificate(link.content)
    assert certificate.subject.rfc4514_string() == "CN=system:node:target,O=system:nodes"
    assert host.run_test(f"openssl verify -CAfile /etc/kubernetes/pki/ca.crt {CURRENT}")
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert life <= datetime.timedelta(hours=25), (
        "the kubelet renews it; until then it is short, too"
    )


def test_key_is_there_once(host):
    """What the certificate was made with is not kept beside what the kubelet uses."""
    for name in ("kubelet-client.crt", "kubelet-client.key"):
        assert not host.file(f"/etc/kubernetes/pki/{name}").exists


def test_kubeconfig(host):
    config = yaml.safe_load(host.file("/etc/kubernetes/kubelet.kubeconfig").content_string)
    assert config["clusters"][0]["cluster"]["server"].startswith("https://api-online.")
    assert config["users"][0]["user"]["client-certificate"] == CURRENT


def test_kubelet_understands_its_configuration(host):
    """It gets past reading and validating it; what it needs next, this machine has not."""
    done = host.run(
        "timeout 20 /usr/local/bin/kubelet --config=/etc/kubernetes/kubelet.yaml"
        " --config-dir=/etc/kubernetes/kubelet.conf.d --v=2"
        " --kubeconfig=/nonexistent"
        " --root-dir=/run/role-test-kubelet --cert-dir=/run/role-test-kubelet"
    )
    said = done.stdout + done.stderr
    assert "failed to validate kubelet configuration" not in said, said[-2000:]
    assert "failed to load kubelet config" not in said, said[-2000:]
    assert "/nonexistent" in said, said[-2000:]


def test_configuration(host):
    config = yaml.safe_load(host.file("/etc/kubernetes/kubelet.yaml").content_string)
    assert config["authentication"]["anonymous"]["enabled"] is False
    assert config["rotateCertificates"] is True
    assert config["serverTLSBootstrap"] is True
    assert config["readOnlyPort"] == 0


def test_unit_is_sound(host):
    unit = host.service("kubelet")
    assert unit.is_enabled
    said = host.run("systemd-analyze verify --man=no --recursive-errors=no kubelet.service")
    assert said.rc == 0, said.stderr
