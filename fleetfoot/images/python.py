"""Python packages of an image: locked by version and hash, as pip leaves them in an image."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.shell import FAMILY, run

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["COMPILE", "install"]

COMPILE = """
import compileall, py_compile, sys
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
compileall.compile_dir(sys.argv[1], quiet=2, invalidation_mode=mode)
"""
"""Compiles what is in a folder. It goes by no file's time, for archives of layers round them, and
Python would compile at each start what seems to be older. What cannot be compiled is left, as pip
does: packages carry templates."""


def install(root: Path, requirements: Path) -> None:
    """Install packages where the image's own Python finds them, and compile them with it.

    pip of the host cannot compile for another Python; what is not compiled is so at each start.

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
    inside = [*FAMILY, "chroot", str(root), f"/usr/bin/python{version}", "-c", COMPILE]
    run([*inside, f"/{target.relative_to(root)}"], consequence="the image is not built")
