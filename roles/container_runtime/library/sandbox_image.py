#!/usr/bin/python
"""Make the sandbox (pause) image from one static program and put it into containerd's store."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: sandbox_image
short_description: Put the sandbox image into containerd's store
description:
  - Makes an OCI image that holds one static program and imports it into the namespace of the kubelet.
  - On an image tree, where no containerd runs, one is started for the time of the import.
options:
  name: {description: Image name, required: true, type: str}
  program: {description: Static program that waits and reaps, required: true, type: path}
  arguments: {description: Its arguments, default: [], type: list, elements: str}
  archive: {description: Where it is kept as an OCI archive as well, required: true, type: path}
  live: {description: Whether containerd runs on this machine, default: true, type: bool}
author: [Fleetfoot maintainers]
"""

EXAMPLES = """
- name: Put the sandbox image into the store
  sandbox_image:
    name: localhost/fleetfoot/pause:1
    program: /usr/bin/catatonit
    arguments: [-P]
    archive: /usr/local/share/fleetfoot/sandbox.tar
"""

RETURN = """
digest: {description: Digest of the image's manifest, returned: always, type: str}
"""

CTR = "/usr/local/bin/ctr"
CONTAINERD = "/usr/local/bin/containerd"
SOCKET = "/run/containerd/containerd.sock"
STORE = "/var/lib/containerd"
START_SECONDS = 60


def add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    """Append a file whose metadata never varies."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    archive.addfile(info, io.BytesIO(content))


def blob(archive: tarfile.TarFile, content: bytes, kind: str) -> dict:
    """Append a blob of an OCI layout and return its descriptor."""
    digest = hashlib.sha256(content).hexdigest()
    add(archive, "blobs/sha256/" + digest, content)
    return {"mediaType": kind, "digest": "sha256:" + digest, "size": len(content)}


def oci_archive(name: str, program: str, arguments: list) -> tuple:
    """Return (OCI layout as tar, digest of the manifest)."""
    with open(program, "rb") as stream:
        content = stream.read()
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        add(files, "pause", content, 0o755)
    out = io.BytesIO()
    kind = "application/vnd.oci.image."
    with tarfile.open(fileobj=out, mode="w") as archive:
        add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        packed = blob(archive, layer.getvalue(), kind + "layer.v1.tar")
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/pause", *arguments], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [packed["digest"]]},
        }
        encoded = json.dumps(config, sort_keys=True).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": kind + "manifest.v1+json",
            "config": blob(archive, encoded, kind + "config.v1+json"),
            "layers": [packed],
        }
        top = blob(archive, json.dumps(manifest, sort_keys=True).encode(), manifest["mediaType"])
        digest = top["digest"]
        top["annotations"] = {"io.containerd.image.name": name}
        index = {"schemaVersion": 2, "manifests": [top]}
        add(archive, "index.json", json.dumps(index, sort_keys=True).encode())
    return out.getvalue(), digest


def start(module: AnsibleModule, state: str) -> subprocess.Popen:
    """Start a containerd for the import alone; return when it answers."""
    log = open(os.path.join(state, "log"), "wb")  # noqa: SIM115 (lives as long as the process)
    argv = [CONTAINERD, "--state", state, "--address", SOCKET]
    process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run([CTR, "version"], capture_output=True, check=False).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            with open(log.name) as said:
                module.fail_json(msg="containerd did not start: " + said.read()[-2000:])
    return process


def present(module: AnsibleModule) -> dict:
    """Names and digests of the images in the store."""
    _, shown, _ = module.run_command([CTR, "-n", "k8s.io", "images", "ls"], check_rc=True)
    return {line.split()[0]: line.split()[2] for line in shown.splitlines()[1:]}


def keep(module: AnsibleModule, archive: bytes, path: str) -> bool:
    """Keep the archive on disk; return whether it was not there."""
    if os.path.exists(path):
        with open(path, "rb") as stream:
            if stream.read() == archive:
                return False
    if not module.check_mode:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=module.tmpdir, delete=False) as stream:
            stream.write(archive)
        os.chmod(stream.name, 0o644)
        module.atomic_move(stream.name, path)
    return True


def put(module: AnsibleModule, archive: bytes, name: str, digest: str) -> bool:
    """Import the image unless the store has it."""
    if present(module).get(name) == digest:
        return False
    if not module.check_mode:
        with tempfile.NamedTemporaryFile(dir=module.tmpdir, suffix=".tar") as stream:
            stream.write(archive)
            stream.flush()
            argv = [CTR, "-n", "k8s.io", "images", "import", "--local", stream.name]
            module.run_command(argv, check_rc=True)
    return True


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "program": {"type": "path", "required": True},
            "arguments": {"type": "list", "elements": "str", "default": []},
            "archive": {"type": "path", "required": True},
            "live": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    name = module.params["name"]
    needed = (module.params["program"], CTR)
    if module.check_mode and not all(map(os.path.exists, needed)):
        module.exit_json(changed=True, digest="")  # the run would have installed them by now
    archive, digest = oci_archive(name, module.params["program"], module.params["arguments"])
    kept = keep(module, archive, module.params["archive"])
    if module.params["live"]:
        module.exit_json(changed=put(module, archive, name, digest) or kept, digest=digest)
    if module.check_mode:
        changed = kept or not os.path.isdir(os.path.join(STORE, "io.containerd.content.v1.content"))
        module.exit_json(changed=changed, digest=digest)
    with tempfile.TemporaryDirectory(dir="/run") as state:
        process = start(module, state)
        try:
            changed = put(module, archive, name, digest) or kept
        finally:
            process.terminate()
            process.wait()
    module.exit_json(changed=changed, digest=digest)


if __name__ == "__main__":
    main()
