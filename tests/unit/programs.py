"""Ansible's programs, run as a user would from the project's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fleetfoot.paths import PROJECT


def ansible(program: str, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `ansible`, `ansible-playbook`...; the caller looks at its status and what it said."""
    return subprocess.run(
        [str(Path(sys.executable).with_name(program)), *argv],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )
