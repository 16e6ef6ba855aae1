"""From a fresh checkout to a virtual environment: the first part of every `make` target.

Looks at the host and says what will be installed and changed; then installs python3-venv where it
is missing, and the locked requirements. A second run does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot.host import preflight
from fleetfoot.paths import cache_dir, private_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parents[2]
VENV = PROJECT / ".venv"
LOCK = PROJECT / "requirements.lock"
STAMP = VENV / "fleetfoot-requirements"
#: Made by `make host` when all of it is done.
HOST_DONE = VENV / "fleetfoot-host"

_CHANGES = """\
Fleetfoot will install and change on this host:
  packages   Debian's, listed in roles/host_packages (QEMU, mkosi, systemd-container, dnsmasq, ...);
             from the release's backports suite where the release's own are too old, for which one
             apt source file is added (fleetfoot-backports.sources)
  programs   {cache}: Go programs and machine images, built once
  checkout   .venv (Python packages of requirements.lock), .fleetfoot (the stack's state and keys)
  network    one namespace, one veth pair and one nftables table per stack, two routes
  kernel     net.ipv4.ip_forward = 1, which stays
  cgroups    a group `fleetfoot` that bounds the machines
`make down` removes the stack with its network and cgroups; packages and caches stay."""


def _stamp() -> str:
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    installed = {key: declared[key] for key in ("build-system", "project")}
    content = LOCK.read_text() + json.dumps(installed) + sys.version
    return hashlib.sha256(content.encode()).hexdigest()


def ready() -> bool:
    """Whether the virtual environment is there and holds what the lock file says."""
    return STAMP.exists() and STAMP.read_text() == _stamp()


def install() -> None:
    """Make the virtual environment, with every package checked against its hash."""
    if importlib.util.find_spec("ensurepip") is None:
        print("installing python3-venv", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-q"], check=True, env=environment)
        subprocess.run(
            ["apt-get", "install", "-y", "-q", "python3-venv"], check=True, env=environment
        )
    print(
        "installing Python packages into .venv (once per requirements.lock; one to three minutes)",
        flush=True,
    )
    # Anew: what a killed run, another Python or an older lock file left there is not trusted.
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-q", "--no-input"]
    pip += ["--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", str(LOCK)], check=True)
    # setuptools warns of what an editable installation is; that is what is wanted.
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "-e", str(PROJECT)],
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore::UserWarning"},
    )
    STAMP.write_text(_stamp())


@contextlib.contextmanager
def _only_installer() -> Iterator[None]:
    with (private_dir(PROJECT / ".fleetfoot") / "venv.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another run that installs into .venv", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _host_serves(*, told: bool) -> bool:
    """Whether the local stack can run here; all reasons are printed if not, or if `told`."""
    found = preflight.checks(PROJECT, cache_dir())
    good = all(check.ok for check in found)
    if told or not good:
        print("This host:\n" + preflight.report(found))
    if not good:
        print("The local stack cannot run here; nothing was changed.", file=sys.stderr)
    return good


def main() -> int:
    """Check the host, say what will change, install; return the exit status."""
    parser = argparse.ArgumentParser(prog="fleetfoot.host.bootstrap", description=__doc__)
    parser.add_argument("--check-only", action="store_true", help="look and tell, change nothing")
    parser.add_argument(
        "--venv-only", action="store_true", help="make .venv, whatever else the host is fit for"
    )
    options = parser.parse_args()
    if not options.venv_only:
        if not _host_serves(told=options.check_only):
            return 1
        if options.check_only:
            print("The local stack can run here.\n\n" + _CHANGES.format(cache=cache_dir()))
            return 0
        if not HOST_DONE.exists():
            print(_CHANGES.format(cache=cache_dir()), flush=True)
    with _only_installer():
        if not ready():
            install()
    return 0


if __name__ == "__main__":
    sys.exit(main())
