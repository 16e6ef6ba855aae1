"""Running other programs: output kept, failures told with what they printed."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["FAMILY", "run", "succeeds"]

#: Before a command: it and all its children end with this process, even when that is killed. They
#: see processes and mounts of their own.
FAMILY = (
    *("setpriv", "--pdeathsig=KILL", "--"),
    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
)


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    consequence: str = "",
) -> str:
    """Run a program to its end and return what it printed on standard output.

    Raises:
        FleetfootError: It is not installed, failed, or ran longer than `timeout` seconds.
    """
    command = " ".join(argv[:6])
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            env=None if env is None else dict(env),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as missing:
        raise FleetfootError(
            f"{argv[0]} is not installed", consequence, "run `make up`, which installs it"
        ) from missing
    except subprocess.TimeoutExpired as late:
        raise FleetfootError(f"`{command}` took longer than {timeout:.0f} s", consequence) from late
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise FleetfootError(f"`{command}` failed: {said}", consequence)
    return done.stdout


def succeeds(argv: Sequence[str]) -> bool:
    """Return whether a program ends with status 0; its output is dropped."""
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0
