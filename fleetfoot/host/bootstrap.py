"""From a fresh checkout to a virtual environment: the first part of every `make` target.

Says first what will be installed and changed; then installs python3-venv where it is missing, and
the locked requirements. A second run does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from fleetfoot.host import preflight
from fleetfoot.paths import cache_dir

PROJECT = Path(__file__).resolve().parents[2]
VENV = PROJECT / ".venv"
LOCK = PROJECT / "requirements.lock"
STAMP = VENV / "fleetfoot-requirements"

_CHANGES = """\
Fleetfoot will install and change on this host:
  packages   Debian's, listed in playbooks/host.yml (QEMU, mkosi, systemd-container, dnsmasq, ...);
             from the release's backports suite where the release's own are too old, for which one
             apt source file is added (fleetfoot-backports.sources)
  programs   {cache}: Go programs and machine images, built once
  checkout   .venv (Python packages of requirements.lock), .fleetfoot (the stack's state and keys)
  network    one namespace, one veth pair and one nftables table per stack, two routes, IPv4
             forwarding switched on
  cgroups    a group `fleetfoot` that bounds the machines
`make down` removes the stack with its network and cgroups; packages and caches stay."""


def _stamp() -> str:
    content = LOCK.read_bytes() + (PROJECT / "pyproject.toml").read_bytes()
    return hashlib.sha256(content + sys.version.encode()).hexdigest()


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
    print("installing Python packages into .venv (once per requirements.lock)", flush=True)
    if not (VENV / "bin" / "python").exists():
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-q", "--no-input"]
    pip += ["--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", str(LOCK)], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", str(PROJECT)], check=True)
    STAMP.write_text(_stamp())


def main() -> int:
    """Check the host, say what will change, install; return the exit status."""
    parser = argparse.ArgumentParser(prog="fleetfoot.host.bootstrap", description=__doc__)
    parser.add_argument("--check-only", action="store_true", help="look and tell, change nothing")
    options = parser.parse_args()
    found = preflight.checks(PROJECT, cache_dir())
    good = all(check.ok for check in found)
    if options.check_only or not good:
        print("This host:\n" + preflight.report(found))
    if not good:
        print("The local stack cannot run here; nothing was changed.", file=sys.stderr)
        return 1
    if options.check_only:
        print("The local stack can run here.\n\n" + _CHANGES.format(cache=cache_dir()))
        return 0
    if not ready():
        print(_CHANGES.format(cache=cache_dir()), flush=True)
        install()
    return 0


if __name__ == "__main__":
    sys.exit(main())
