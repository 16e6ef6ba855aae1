"""Authorities on the controller; a leaf whose key never left the machine."""

import json
import os
from pathlib import Path

import pytest
from cryptography import x509

FACTS = json.loads((Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "machine.json").read_text())
PKI = Path(FACTS["state_dir"]) / "pki"


@pytest.mark.parametrize("authority", ["kubernetes", "etcd", "front-proxy"])
def test_authority(authority):
    folder = PKI / authority
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "ca.key").stat().st_mode & 0o777 == 0o600
    certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    assert constraints.value.path_length == 0


def test_service_account_key_pair():
    assert (PKI / "service-account/key.pem").stat().st_mode & 0o777 == 0o600
    assert "PUBLIC KEY" in (PKI / "service-account/public.pem").read_text()


def test_leaf(host):
    key = host.file("/etc/role-test/leaf.key")
    assert key.mode == 0o600
    assert host.run_test("openssl verify -CAfile /etc/role-test/ca.crt /etc/role-test/leaf.crt")
    certificate = x509.load_pem_x509_certificate(host.file("/etc/role-test/leaf.crt").content)
    assert certificate.subject.rfc4514_string() == "CN=role-test,O=testers"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["role-test.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == [FACTS["address"]]


def test_key_stays_on_the_machine(host):
    secret = host.file("/etc/role-test/leaf.key").content_string.splitlines()[1]
    files = [path for path in Path(FACTS["state_dir"]).glob("pki/**/*") if path.is_file()]
    assert files
    assert not [path for path in files if secret in path.read_text()]
