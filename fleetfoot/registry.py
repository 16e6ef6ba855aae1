"""Pushing to a stack's registry: TLS by the stack's authority, the builders' credential by file."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.images.oci import TAG
from fleetfoot.lazyfs.distribution import Access
from fleetfoot.paths import StackPaths, write_private
from fleetfoot.pki import authority_certificate
from fleetfoot.shell import run

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Registry"]

PUSHER = "pusher"
# What skopeo repeats of a registry that has no such image.
_UNKNOWN = ("manifest unknown", "name unknown")


@dataclass(frozen=True)
class Registry:
    """The registry of a stack.

    Attributes:
        stack: The stack's name.
        name: `host:port` by which machines of the stack know it.
        address: `host:port` by which this host reaches it.
    """

    stack: str
    name: str
    address: str

    def push(self, layout: Path, repository: str) -> str:
        """Push the image of an OCI layout; return its reference by digest.

        Raises:
            FleetfootError: The registry does not answer or refuses.
        """
        digest = self._digest(layout)
        if not self.has(repository, digest):
            target = f"docker://{self.address}/{repository}:{digest.removeprefix('sha256:')[:12]}"
            argv = ["skopeo", "copy", "--quiet", "--preserve-digests", *self._access("dest-")]
            argv += [f"oci:{layout}:{TAG}", target]
            run(argv, timeout=600, consequence=f"{repository} cannot be deployed")
        return f"{self.name}/{repository}@{digest}"

    def has(self, repository: str, digest: str) -> bool:
        """Whether the registry holds an image.

        Raises:
            FleetfootError: It does not answer, or not as a registry does.
        """
        reference = f"docker://{self.address}/{repository}@{digest}"
        argv = ["skopeo", "inspect", "--raw", *self._access(), reference]
        asked = subprocess.run(argv, capture_output=True, text=True, check=False)
        if asked.returncode and not any(said in asked.stderr for said in _UNKNOWN):
            raise FleetfootError(
                f"the registry at {self.address} does not answer: {asked.stderr.strip()}",
                "nothing can be pushed, and nodes cannot pull what they do not have yet",
                "see `systemctl status docker-registry` on its machine",
            )
        return asked.returncode == 0

    def access(self) -> Access:
        """Return how the registry is reached by whoever pushes."""
        self._access()
        folder = StackPaths(self.stack).root / "registry"
        return Access.of_docker(folder / "auth.json", self.address, folder / "certs" / "ca.crt")

    def _digest(self, layout: Path) -> str:
        index = json.loads((layout / "index.json").read_text())
        try:
            return str(index["manifests"][0]["digest"])
        except (KeyError, IndexError) as empty:
            raise FleetfootError(
                f"{layout} holds no image", "nothing can be pushed", "build the image again"
            ) from empty

    def _access(self, prefix: str = "") -> list[str]:
        paths = StackPaths(self.stack)
        folder = paths.root / "registry"
        password = (paths.root / "secrets" / "registry" / PUSHER).read_text().strip()
        basic = base64.b64encode(f"{PUSHER}:{password}".encode()).decode()
        auth = {"auths": {self.address: {"auth": basic}}}
        write_private(folder / "auth.json", json.dumps(auth))
        write_private(folder / "certs" / "ca.crt", authority_certificate(paths.pki, "kubernetes"))
        return [
            f"--{prefix}authfile={folder / 'auth.json'}",
            f"--{prefix}cert-dir={folder / 'certs'}",
        ]
