"""Ansible module: the keys and certificates of a machine, all of a role in one go."""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError:
    x509 = None  # type: ignore[assignment]

DOCUMENTATION = """
module: pki_leaves
short_description: Keep a machine's keys and tell which certificates are due
description:
  - Looks at a list of leaf certificates. For one that is missing, about to expire or not as
    described, a new key is made beside the old one and a signing request is returned.
  - Called again with the signed certificates it puts key and certificate into place together.
  - Private keys never leave the machine.
options:
  leaves:
    description: The certificates; O(leaves[].certificate) names one.
    type: list
    elements: dict
    required: true
    suboptions:
      certificate: {description: Path of the certificate., type: path, required: true}
      key: {description: Path of the private key., type: path, required: true}
      authority: {description: Name of the authority., type: str, required: true}
      common_name: {description: Subject's common name., type: str, required: true}
      organizations: {description: Subject's organizations., type: list, elements: str, default: []}
      names: {description: DNS names., type: list, elements: str, default: []}
      addresses: {description: IP addresses., type: list, elements: str, default: []}
      usages:
        description: Extended key usages.
        type: list
        elements: str
        choices: [server, client]
        required: true
      owner: {description: Owner of the key., type: str, default: root}
  authorities:
    description: Authority name to certificate (PEM).
    type: dict
    required: true
  trust:
    description: Authority certificates to keep on the machine.
    type: list
    elements: dict
    default: []
    suboptions:
      authority: {description: Name of the authority., type: str, required: true}
      path: {description: Where its certificate goes., type: path, required: true}
  certificates:
    description: Signed certificates (PEM) by path, in answer to RV(requests).
    type: dict
    default: {}
  replace_authorities:
    description:
      - Whether a machine that trusts one of the same name with another key may be given this one;
        else it is refused.
    type: bool
    default: false
  lifetime_days:
    description: Days that a new certificate is valid, unless its authority ends sooner.
    type: int
    default: 365
  renew_days:
    description:
      - Days before its end that a certificate is due. One that ends with its authority is not, for
        a new one would end no later.
    type: int
    default: 90
  renew_all:
    description: Whether every certificate is due.
    type: bool
    default: false
author: [Fleetfoot maintainers]
"""

EXAMPLES = """
- name: Keep the server's key
  pki_leaves:
    leaves:
      - certificate: /etc/demo/server.crt
        key: /etc/demo/server.key
        authority: kubernetes
        common_name: demo
        names: [demo.example]
        usages: [server]
    authorities:
      kubernetes: "{{ lookup('file', pki_dir ~ '/kubernetes/ca.crt') }}"
"""

RETURN = """
requests:
  description: Certificates to sign.
  returned: success
  type: list
  elements: dict
  contains:
    certificate: {description: Its path., type: str}
    authority: {description: Who shall sign., type: str}
    csr: {description: The signing request (PEM)., type: str}
    not_after: {description: "When it shall end, as community.crypto's modules take it.", type: str}
    why: {description: What is wrong with the present one., type: str}
"""

LEAF = {
    "certificate": {"type": "path", "required": True},
    "key": {"type": "path", "required": True, "no_log": False},
    "authority": {"type": "str", "required": True},
    "common_name": {"type": "str", "required": True},
    "organizations": {"type": "list", "elements": "str", "default": []},
    "names": {"type": "list", "elements": "str", "default": []},
    "addresses": {"type": "list", "elements": "str", "default": []},
    "usages": {
        "type": "list",
        "elements": "str",
        "choices": ["server", "client"],
        "required": True,
    },
    "owner": {"type": "str", "default": "root"},
}
TRUST = {
    "authority": {"type": "str", "required": True},
    "path": {"type": "path", "required": True},
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "leaves": {"type": "list", "elements": "dict", "required": True, "options": LEAF},
    "authorities": {"type": "dict", "required": True},
    "trust": {"type": "list", "elements": "dict", "default": [], "options": TRUST},
    "certificates": {"type": "dict", "default": {}},
    "replace_authorities": {"type": "bool", "default": False},
    "lifetime_days": {"type": "int", "default": 365},
    "renew_days": {"type": "int", "default": 90},
    "renew_all": {"type": "bool", "default": False},
}


def pending(key: str) -> Path:
    """Where a new key waits for its certificate."""
    return Path(f"{key}.new")


def usage_oids(usages: list[str]) -> set[Any]:
    """The extended key usages as object identifiers."""
    known = {
        "server": ExtendedKeyUsageOID.SERVER_AUTH,
        "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    return {known[usage] for usage in usages}


def public_bytes(public: Any) -> bytes:
    """A public key in a form that can be compared."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(public.public_bytes(serialization.Encoding.DER, form))


def extension(certificate: Any, kind: Any) -> Any:
    """The value of an extension, or None."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def why_due(leaf: dict[str, Any], authority: Any, renew: datetime.timedelta) -> str:
    """Say why a certificate must be made anew; empty when it is as described."""
    try:
        certificate = x509.load_pem_x509_certificate(Path(leaf["certificate"]).read_bytes())
        key = serialization.load_pem_private_key(Path(leaf["key"]).read_bytes(), password=None)
    except FileNotFoundError:
        return "missing"
    except ValueError:
        return "unreadable"
    if public_bytes(key.public_key()) != public_bytes(certificate.public_key()):
        return "key and certificate do not belong together"
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return "signed by another authority"
    end = end_of(certificate)
    if end - datetime.datetime.now(datetime.UTC) < renew and end < end_of(authority):
        return "about to expire"
    return difference(leaf, certificate)


def end_of(certificate: Any) -> datetime.datetime:
    """The moment a certificate ends, under cryptography before and since 42."""
    if hasattr(certificate, "not_valid_after_utc"):
        end: datetime.datetime = certificate.not_valid_after_utc
        return end
    return certificate.not_valid_after.replace(tzinfo=datetime.UTC)  # type: ignore[no-any-return]


def new_end(authority: Any, days: int) -> str:
    """When a certificate that is signed now shall end: not after its authority."""
    end = end_of(authority)
    if end < datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days):
        return end.strftime("%Y%m%d%H%M%SZ")
    return f"+{days}d"


def difference(leaf: dict[str, Any], certificate: Any) -> str:
    """Say what in a certificate is not as described."""
    subject = certificate.subject
    names = [a.value for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    organizations = {a.value for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)}
    if names != [leaf["common_name"]] or organizations != set(leaf["organizations"]):
        return "other subject"
    alternatives = extension(certificate, x509.SubjectAlternativeName)
    dns = set(alternatives.get_values_for_type(x509.DNSName)) if alternatives else set()
    ips = set(alternatives.get_values_for_type(x509.IPAddress)) if alternatives else set()
    if dns != set(leaf["names"]) or ips != {ipaddress.ip_address(a) for a in leaf["addresses"]}:
        return "other names or addresses"
    if set(extension(certificate, x509.ExtendedKeyUsage) or ()) != usage_oids(leaf["usages"]):
        return "other usages"
    return ""


def signing_request(leaf: dict[str, Any]) -> str:
    """Make a key beside the present one; return the request for its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    write(
        pending(leaf["key"]),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        0o600,
    )
    subject = [
        *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in leaf["organizations"]),
        x509.NameAttribute(NameOID.COMMON_NAME, leaf["common_name"]),
    ]
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name(subject))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage(sorted(usage_oids(leaf["usages"]), key=str)), False)
    )
    alternatives = [
        *(x509.DNSName(name) for name in leaf["names"]),
        *(x509.IPAddress(ipaddress.ip_address(a)) for a in leaf["addresses"]),
    ]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    request = builder.sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def write(path: Path, content: bytes, mode: int) -> None:
    """Write a file so that it is never there in part nor with a wider mode."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(descriptor, mode)
        stream.write(content)
    temporary.replace(path)


def put_in_place(leaf: dict[str, Any], signed: str) -> None:
    """Install a signed certificate together with the key it belongs to."""
    certificate = x509.load_pem_x509_certificate(signed.encode())
    waiting = pending(leaf["key"])
    key = serialization.load_pem_private_key(waiting.read_bytes(), password=None)
    if public_bytes(key.public_key()) != public_bytes(certificate.public_key()):
        raise ValueError(f"{leaf['certificate']}: the signed certificate is not of {waiting}")
    write(Path(leaf["certificate"]), signed.encode(), 0o644)
    waiting.replace(leaf["key"])


def keep_attributes(module: AnsibleModule, leaf: dict[str, Any]) -> bool:
    """Correct owner and mode of key and certificate."""
    changed = False
    for path, owner, mode in (
        (leaf["key"], leaf["owner"], "0600"),
        (leaf["certificate"], "root", "0644"),
    ):
        if Path(path).exists():
            wanted = {"path": path, "owner": owner, "mode": mode}
            arguments = module.load_file_common_arguments({**module.params, **wanted})
            changed = module.set_fs_attributes_if_different(arguments, changed)
    return changed


def foreign(path: Path, own: set[bytes]) -> bool:
    """Say whether a machine trusts an authority that none of pki_dir's keys belongs to.

    A certificate that was made anew with the same key is none: what was signed stays valid. Nor is
    another one of pki_dir: what is trusted there has changed.
    """
    if not path.exists():
        return False
    try:
        trusted = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        return False  # it trusts nobody
    return public_bytes(trusted.public_key()) not in own


def refuse_foreign(module: AnsibleModule) -> None:
    """Refuse to give a machine other authorities than those that it trusts."""
    if module.params["replace_authorities"]:
        return
    own = {
        public_bytes(x509.load_pem_x509_certificate(authority.encode()).public_key())
        for authority in module.params["authorities"].values()
        if authority
    }
    strangers = [
        f"{entry['path']} ({entry['authority']})"
        for entry in module.params["trust"]
        if foreign(Path(entry["path"]), own)
    ]
    if strangers:
        module.fail_json(
            msg=f"the machine trusts another authority than pki_dir holds: {', '.join(strangers)}. "
            "With the one of pki_dir it and all that it works with would refuse each other. No "
            "authority was changed. Name the state folder that the machine was made with (pki_dir) "
            "or, to replace the authority, give `-e pki_replace_authorities=true` (docs/runbook.md)"
        )


def keep_trust(module: AnsibleModule) -> bool:
    """Keep the authorities' certificates on the machine."""
    refuse_foreign(module)
    changed = False
    for entry in module.params["trust"]:
        path = Path(entry["path"])
        wanted = module.params["authorities"][entry["authority"]].strip() + "\n"
        if path.exists() and path.read_text() == wanted:
            continue
        changed = True
        if not module.check_mode:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write(path, wanted.encode(), 0o644)
    return changed


def run(module: AnsibleModule) -> dict[str, Any]:
    """Do one call: look, request, or install."""
    parameters = module.params
    renew = datetime.timedelta(days=parameters["renew_days"])

    def due(leaf: dict[str, Any], authority: Any) -> str:
        return "all are" if parameters["renew_all"] else why_due(leaf, authority, renew)

    changed = keep_trust(module)
    requests = []
    for leaf in parameters["leaves"]:
        signed = parameters["certificates"].get(leaf["certificate"])
        authority = parameters["authorities"].get(leaf["authority"])
        if signed:
            put_in_place(leaf, signed)
            changed = True
        elif not authority:
            if not module.check_mode:
                module.fail_json(
                    msg=f"the authority {leaf['authority']} of {leaf['certificate']} does not "
                    "exist, so nothing can be signed; role pki makes authorities (see site.yml)"
                )
            changed = True
        elif why := due(leaf, signer := x509.load_pem_x509_certificate(authority.encode())):
            changed = True
            if not module.check_mode:
                for path in (leaf["certificate"], leaf["key"]):
                    Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                requests.append(
                    {
                        "certificate": leaf["certificate"],
                        "authority": leaf["authority"],
                        "csr": signing_request(leaf),
                        "not_after": new_end(signer, parameters["lifetime_days"]),
                        "why": why,
                    }
                )
        changed = keep_attributes(module, leaf) or changed
    return {"changed": changed, "requests": requests}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    if x509 is None and module.check_mode:
        module.exit_json(changed=True, requests=[])  # the run would have installed it by now
    if x509 is None:
        module.fail_json(
            msg="python3-cryptography is not installed on the machine, so it can keep no keys; "
            "install that package (role pki does, by its entry point leaves)"
        )
    module.exit_json(**run(module))


if __name__ == "__main__":
    main()
