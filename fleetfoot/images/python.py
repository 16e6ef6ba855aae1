"""Python packages of an image: locked by version and hash, as pip leaves them in an image."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.shell import FAMILY, run

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["install"]


def install(root: Path, requirements: Path) -> None:
    """Install packages where the image's own Python finds them, and compile them with it.

    pip of the host cannot compile for another Python; what is not compiled is compiled at each start.

    Args:
        root: Root of the image, with Debian's Python.
        requirements: Versions and hashes, as pip reads them.

    Raises:
        FleetfootError: The image has no Python, or a package is not to be had or another.
    """
    found = sorted(root.glob("usr/bin/python3.[0-9]*"))
    if not found:
        raise FleetfootError(
            f"the image of {requirements} has no Python",
            "its packages cannot be installed",
            "add python3 to the packages of its mkosi.conf",
        )
    version = found[-1].name.removeprefix("python")
    target = root / f"usr/local/lib/python{version}/dist-packages"
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    argv += ["--require-hashes", "--python-version", version, "--target", str(target)]
    argv += ["--disable-pip-version-check", "--root-user-action=ignore"]
    run([*argv, "--requirement", str(requirements)], consequence="the image is not built")
    # Whatever does not compile is left, as pip does: packages carry templates.
    code = f"import compileall; compileall.compile_dir('/{target.relative_to(root)}', quiet=2)"
    inside = [*FAMILY, "chroot", str(root), f"/usr/bin/python{version}", "-c", code]
    run(inside, consequence="the image is not built")
