"""What is pushed gets its lazy form: at once, and later where the service was away."""

import base64
import contextlib
import hashlib
import io
import json
import os
import ssl
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path

FACTS = json.loads((Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "machine.json").read_text())
STATE = Path(FACTS["state_dir"])
URL = f"https://{FACTS['address']}:5000"
UNIT = "fleetfoot-lazy-converter"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
KIND = "application/vnd.fleetfoot.lazy.v1"


def call(method, path, body=None, kind="application/octet-stream"):
    """Return headers and body of a request as the pusher."""
    password = (STATE / "secrets/registry/pusher").read_text().strip()
    token = base64.b64encode(f"pusher:{password}".encode()).decode()
    headers = {
        "Content-Type": kind,
        "Authorization": f"Basic {token}",
        "Accept": f"{MANIFEST}, {INDEX}",
    }
    context = ssl.create_default_context(cafile=str(STATE / "pki/kubernetes/ca.crt"))
    target = path if path.startswith("https:") else f"{URL}{path}"
    request = urllib.request.Request(target, body, headers, method=method)
    with urllib.request.urlopen(request, context=context, timeout=20) as answer:
        return answer.headers, answer.read()


def blob(repository, data, kind):
    """Push a blob; return its descriptor."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    headers, _ = call("POST", f"/v2/{repository}/blobs/uploads/", b"")
    target = headers["Location"]
    call("PUT", f"{target}{'&' if '?' in target else '?'}digest={digest}", data)
    return {"mediaType": kind, "digest": digest, "size": len(data)}


def push(repository, text):
    """Push an image with one file; return its digest."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("file")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text.encode()))
    layer = packed.getvalue()
    unpacked = [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    config = {"os": "linux", "architecture": "amd64"}
    config["rootfs"] = {"type": "layers", "diff_ids": unpacked}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(
            repository, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"
        ),
        "layers": [blob(repository, layer, "application/vnd.oci.image.layer.v1.tar")],
    }
    body = json.dumps(manifest).encode()
    call("PUT", f"/v2/{repository}/manifests/1", body, MANIFEST)
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def lazy_forms(repository, digest):
    """Return what is attached to an image, once something is."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.HTTPError):
            _, body = call("GET", f"/v2/{repository}/manifests/{digest.replace(':', '-')}")
            return json.loads(body)["manifests"]
        time.sleep(0.2)
    return []


def test_what_is_pushed_becomes_lazy(host):
    digest = push("pushed", "while it runs")
    (found,) = lazy_forms("pushed", digest)
    assert found["artifactType"] == KIND, host.check_output(
        f"journalctl -u {UNIT} --no-pager -n 30"
    )
    _, body = call("GET", f"/v2/pushed/manifests/{found['digest']}")
    assert json.loads(body)["subject"]["digest"] == digest


def test_what_was_pushed_while_it_was_away_becomes_lazy(host):
    host.check_output(f"systemctl kill --signal=KILL {UNIT} && systemctl stop {UNIT}")
    try:
        digest = push("away", "while it was away")
        # The registry, too, has forgotten whom it would have told.
        host.check_output("systemctl restart docker-registry")
    finally:
        host.check_output(f"systemctl start {UNIT}")
    assert lazy_forms("away", digest)


def test_runs_as_itself_and_is_heard_on_loopback_alone(host):
    assert host.service(UNIT).is_enabled
    pid = host.check_output(f"systemctl show -P MainPID {UNIT}")
    assert host.check_output(f"stat --format=%U /proc/{pid}") == UNIT
    assert host.socket("tcp://127.0.0.1:5002").is_listening
    assert not host.socket("tcp://0.0.0.0:5002").is_listening
    assert host.check_output(f"systemd-analyze verify --man=no {UNIT}.service") == ""
    assert host.file("/var/lib/fleetfoot-lazy-converter").mode == 0o700
