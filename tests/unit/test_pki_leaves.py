"""When leaves are due and when they end, beside an authority that ends itself."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.unit.modules import load

NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fleetfoot etcd")])
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
RENEW = datetime.timedelta(days=90)


@pytest.fixture(scope="module")
def module() -> Any:
    return load("pki_leaves")


def certificate(days: int, key: Any, signer: Any, *usages: Any) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(days=1))
        .not_valid_after(NOW + datetime.timedelta(days=days))
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(signer, hashes.SHA256())


@pytest.mark.parametrize(
    ("leaf", "authority", "why"),
    [
        (365, 3650, ""),
        (30, 3650, "about to expire"),
        (30, 40, "about to expire"),
        # A new one could not last longer, so none is made at each run.
        (30, 30, ""),
    ],
)
def test_a_leaf_is_due_while_a_new_one_would_last_longer(
    module: Any, tmp_path: Path, leaf: int, authority: int, why: str
) -> None:
    key, signer = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    made = certificate(leaf, key, signer, *module.usage_oids(["client"]))
    (tmp_path / "leaf.crt").write_bytes(made.public_bytes(pem))
    form = serialization.PrivateFormat.PKCS8
    (tmp_path / "leaf.key").write_bytes(key.private_bytes(pem, form, plain))
    wanted = {
        "certificate": str(tmp_path / "leaf.crt"),
        "key": str(tmp_path / "leaf.key"),
        "common_name": "fleetfoot etcd",
        "organizations": [],
        "names": [],
        "addresses": [],
        "usages": ["client"],
    }
    assert module.why_due(wanted, certificate(authority, signer, signer), RENEW) == why


def test_a_leaf_ends_with_its_authority_at_the_latest(module: Any) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    assert module.new_end(certificate(3650, key, key), 365) == "+365d"
    end = NOW + datetime.timedelta(days=30)
    assert module.new_end(certificate(30, key, key), 365) == end.strftime("%Y%m%d%H%M%SZ")
