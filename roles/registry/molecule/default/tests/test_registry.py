"""Nobody without credentials; pullers pull, pushers push; unused layers can be collected."""

import base64
import hashlib
import json
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

FACTS = json.loads((Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "machine.json").read_text())
STATE = Path(FACTS["state_dir"])
URL = f"https://{FACTS['address']}:5000"


def call(path, user="", method="GET", body=None):
    """Return status, headers and body of a request as `user`."""
    headers = {"Content-Type": "application/octet-stream"}
    if user:
        password = (STATE / "secrets/registry" / user).read_text().strip()
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    context = ssl.create_default_context(cafile=str(STATE / "pki/kubernetes/ca.crt"))
    request = urllib.request.Request(f"{URL}{path}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, context=context, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.headers, refused.read()


@pytest.mark.parametrize(
    ("user", "method", "path", "status"),
    [
        ("", "GET", "/v2/", 401),
        ("", "GET", "/v2/_catalog", 401),
        ("puller", "GET", "/v2/", 200),
        ("puller", "POST", "/v2/role-test/blobs/uploads/", 403),
        ("puller", "DELETE", "/v2/role-test/manifests/x", 403),
        ("pusher", "GET", "/v2/", 200),
    ],
)
def test_access(user, method, path, status):
    assert call(path, user, method)[0] == status


def test_keeps_what_is_pushed_through_a_collection(host):
    """A blob that no manifest names goes; the registry serves all the time."""
    blob = b"role test"
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    status, headers, _ = call("/v2/role-test/blobs/uploads/", "pusher", "POST", b"")
    assert status == 202
    target = headers["Location"]
    target = target.removeprefix(URL)
    joiner = "&" if "?" in target else "?"
    assert call(f"{target}{joiner}digest={digest}", "pusher", "PUT", blob)[0] == 201
    assert call(f"/v2/role-test/blobs/{digest}", "puller")[2] == blob
    host.check_output("systemctl start docker-registry-collect.service")
    assert call("/v2/", "puller")[0] == 200
    path = f"/var/lib/docker-registry/docker/registry/v2/blobs/sha256/{digest[7:9]}/{digest[7:]}"
    assert not host.file(f"{path}/data").exists


def test_is_not_reachable_past_its_guard(host):
    assert host.socket("tcp://127.0.0.1:5001").is_listening
    assert not host.socket("tcp://0.0.0.0:5001").is_listening


def test_machine_knows_no_password(host):
    config = host.file("/etc/haproxy/registry.cfg").content_string
    for user in ("puller", "pusher"):
        assert (STATE / "secrets/registry" / user).read_text().strip() not in config


def test_timer(host):
    assert host.service("docker-registry-collect.timer").is_running
