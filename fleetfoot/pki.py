"""Leaf certificates signed by a stack's authorities, for machines that are made right now.

The authorities themselves are made by role pki (`<pki>/<name>/ca.crt`, `ca.key`); leaves that
belong to services are issued by the roles. Here is only what must exist before a machine boots.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleetfoot.errors import FleetfootError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["authority_certificate", "client", "kubelet_client"]

_CLOCK_SKEW = datetime.timedelta(minutes=5)


def authority_certificate(pki: Path, name: str) -> str:
    """Return the PEM certificate of an authority.

    Raises:
        FleetfootError: It does not exist yet.
    """
    try:
        return (pki / name / "ca.crt").read_text()
    except FileNotFoundError as missing:
        raise FleetfootError(
            f"the authority {name!r} is not in {pki}",
            "nothing can be signed by it",
            "run `make up`, which makes the authorities first",
        ) from missing


def kubelet_client(pki: Path, node: str, hours: int = 24) -> str:
    """Return certificate and key (PEM, one after the other) of a node's kubelet.

    The kubelet renews it by itself through the certificates API (kubelet's rotateCertificates).

    Args:
        pki: The stack's authorities.
        node: Node name.
        hours: Lifetime.
    """
    return client(pki, "kubernetes", f"system:node:{node}", ["system:nodes"], hours)


def client(pki: Path, authority: str, user: str, groups: Sequence[str], hours: int = 24) -> str:
    """Return certificate and key (PEM, one after the other) of a client of the apiservers.

    Args:
        pki: The stack's authorities.
        authority: Who signs it; each group of apiservers knows the clients of one.
        user: User name.
        groups: Groups of the user.
        hours: Lifetime.
    """
    issuer = x509.load_pem_x509_certificate(authority_certificate(pki, authority).encode())
    signer = serialization.load_pem_private_key(
        (pki / authority / "ca.key").read_bytes(), password=None
    )
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise FleetfootError(
            f"the key in {pki}/{authority}/ca.key is no elliptic-curve key",
            "certificates of clients cannot be signed with it",
            "remove the authority's folder and run `make up` to make a new one",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = [
        *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
        x509.NameAttribute(NameOID.COMMON_NAME, user),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(hours=hours))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return (certificate.public_bytes(serialization.Encoding.PEM) + private).decode()
