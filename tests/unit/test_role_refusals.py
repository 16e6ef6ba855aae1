"""What roles refuse before they change anything, and that they say which variable to correct.

The cases are in role_refusals.yml and run in one ansible-playbook, which includes the preflight of
each one's role, or the `tasks` that it names, with its variables.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.unit.programs import ansible

PROJECT = Path(__file__).parents[2]
CASES: list[dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("role_refusals.yml").read_text()
)


def playbook(folder: Path, result: Path) -> list[dict[str, Any]]:
    """One play: each case in a block whose rescue keeps what was said."""
    tasks: list[dict[str, Any]] = []
    for number, case in enumerate(CASES):
        include = {
            "ansible.builtin.include_role": {
                "name": case["role"],
                "tasks_from": case.get("tasks", "preflight"),
            },
            "vars": {"folder": str(case_folder(folder, number)), **case["vars"]},
        }
        said = f"{{{{ said | combine({{'{number}': ansible_failed_result | to_json}}) }}}}"
        rescue = {"ansible.builtin.set_fact": {"said": said}}
        tasks.append({"block": [include], "rescue": [rescue]})
    report = {"content": "{{ said | to_json }}", "dest": str(result), "mode": "0600"}
    tasks.append({"ansible.builtin.copy": report})
    play = {"hosts": "localhost", "gather_facts": False, "vars": {"said": {}}, "tasks": tasks}
    return [play]


def case_folder(folder: Path, number: int) -> Path:
    """Where the files of a case are."""
    return folder / f"case-{number}"


def authority(
    folder: Path, name: str, days: int, *, key_of: str = "", foreign_key: bool = False
) -> None:
    """Make an authority that ends in so many days, in a folder as role pki keeps it.

    Args:
        folder: Where its folder is made.
        name: Its folder; its name is what comes after a slash.
        days: Days until its end.
        key_of: Folder of the authority whose key it has; empty makes a key.
        foreign_key: Whether the key that lies beside it is another one.
    """
    home = folder / name
    home.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    if key_of:
        kept = (folder / key_of / "ca.key").read_bytes()
        known = serialization.load_pem_private_key(kept, password=None)
        assert isinstance(known, ec.EllipticCurvePrivateKey)
        key = known
    common_name = f"fleetfoot {name.rpartition('/')[2]}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1000))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form, lock = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (home / "ca.crt").write_bytes(certificate.public_bytes(pem))
    key = ec.generate_private_key(ec.SECP256R1()) if foreign_key else key
    (home / "ca.key").write_bytes(key.private_bytes(pem, form, lock))


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("refusals")
    result = folder / "said.json"
    for number, case in enumerate(CASES):
        here = case_folder(folder, number)
        for name, content in case.get("files", {}).items():
            here.mkdir(exist_ok=True)
            (here / name).write_text(content)
        for name, spec in case.get("authorities", {}).items():
            authority(here, name, **spec)
    (folder / "play.yml").write_text(yaml.safe_dump(playbook(folder, result)))
    argv = ("-i", "localhost,", "-c", "local", str(folder / "play.yml"))
    done = ansible("ansible-playbook", *argv)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, str] = json.loads(result.read_text())
    return found


IDS = [f"{case['role']}-{case['case']}" for case in CASES]


@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_preflight(number: int, said: dict[str, str]) -> None:
    word = CASES[number]["says"]
    if word:
        assert str(number) in said, "it was accepted"
        assert word in said[str(number)]
    else:
        assert str(number) not in said, said[str(number)]
