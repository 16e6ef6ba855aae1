"""Which engine runs the program: the Pulumi CLI where it is installed, else the embedded one.

Both keep the same state in `.fleetfoot/state`, so either may take over from the other.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fleetfoot.engine import Engine
from fleetfoot.errors import FleetfootError
from fleetfoot.paths import PROJECT, private_dir, write_private
from fleetfoot.shell import run

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fleetfoot.engine import EventSink, Summary

__all__ = ["Driver", "Result", "driver"]

STATE = PROJECT / ".fleetfoot" / "state"
PASSPHRASE = PROJECT / ".fleetfoot" / "passphrase"
_LOCK_WAIT_SECONDS = 1800.0
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?")
# Folders of .fleetfoot that are no stack's, and the stack that `bench` makes and removes.
_RESERVED = {"bench", "passphrase", "state"}


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        ok: Whether all went well.
        summary: What was done, for people.
    """

    ok: bool
    summary: str


class Driver(Protocol):
    """One engine on one stack."""

    @property
    def name(self) -> Literal["embedded", "pulumi"]:
        """Which engine it is."""

    def preview(self) -> Result:
        """Tell what `up` would do."""

    def up(self) -> Result:
        """Look at what is, then make what the program declares."""

    def refresh(self) -> Result:
        """Let the state say what is."""

    def destroy(self) -> Result:
        """Remove all resources."""

    def outputs(self) -> dict[str, Any]:
        """Return the stack's outputs, secrets decrypted."""

    def alone(self) -> AbstractContextManager[bool]:
        """Keep other runs out; gives whether the state is empty."""


def driver(stack: str, display: EventSink | None = None) -> Driver:
    """Return the engine to use: `$FLEETFOOT_ENGINE`, else the CLI if it is on PATH."""
    forced = os.environ.get("FLEETFOOT_ENGINE", "")
    if forced not in ("", "embedded", "pulumi"):
        raise FleetfootError(
            f"FLEETFOOT_ENGINE is {forced!r}", "no engine was chosen", "set embedded or pulumi"
        )
    if not _NAME.fullmatch(stack) or stack in _RESERVED:
        raise FleetfootError(
            f"the stack name {stack!r} cannot be used",
            "machines' names and folders are made of it",
            "take up to 32 small letters, digits and inner hyphens, and none of "
            + ", ".join(sorted(_RESERVED)),
        )
    if not (PROJECT / f"Pulumi.{stack}.yaml").exists():
        raise FleetfootError(
            f"there is no Pulumi.{stack}.yaml",
            f"nothing says what the stack {stack!r} should be",
            f"copy Pulumi.local.yaml to Pulumi.{stack}.yaml and give it address ranges of its own",
        )
    if forced == "pulumi" or (not forced and shutil.which("pulumi")):
        return _PulumiCli(stack)
    return _Embedded(stack, display)


def passphrase() -> str:
    """Return the passphrase that guards secrets in state; made at random once (0600)."""
    if not PASSPHRASE.exists():
        private_dir(PASSPHRASE.parent)
        write_private(PASSPHRASE, secrets.token_urlsafe(32))
    return PASSPHRASE.read_text().strip()


def _engine(stack: str, display: EventSink | None = None) -> Engine:
    private_dir(STATE)
    return Engine(
        PROJECT,
        stack,
        backend_url=f"file://{STATE}",
        passphrase=passphrase(),
        display=display,
        lock_wait=_LOCK_WAIT_SECONDS,
    )


class _Embedded:
    name: Literal["embedded"] = "embedded"

    def __init__(self, stack: str, display: EventSink | None) -> None:
        self._engine = _engine(stack, display)

    def preview(self) -> Result:
        return self._told(self._engine.preview())

    def up(self) -> Result:
        return self._told(self._engine.up(refresh=True))

    def refresh(self) -> Result:
        return self._told(self._engine.refresh())

    def destroy(self) -> Result:
        return self._told(self._engine.destroy())

    def outputs(self) -> dict[str, Any]:
        return self._engine.outputs(show_secrets=True)

    def alone(self) -> AbstractContextManager[bool]:
        return self._engine.alone()

    def _told(self, summary: Summary) -> Result:
        return Result(summary.ok, str(summary))


class _PulumiCli:
    name: Literal["pulumi"] = "pulumi"

    def __init__(self, stack: str) -> None:
        self._stack = stack
        self._embedded = _engine(stack)
        self._environment = environment()

    def preview(self) -> Result:
        return self._run("preview", "--diff")

    def up(self) -> Result:
        return self._run("up", "--yes", "--refresh", "--skip-preview")

    def refresh(self) -> Result:
        return self._run("refresh", "--yes", "--skip-preview")

    def destroy(self) -> Result:
        return self._run("destroy", "--yes", "--skip-preview")

    def outputs(self) -> dict[str, Any]:
        argv = ["pulumi", "stack", "output", "--json", "--show-secrets", "--stack", self._stack]
        found: dict[str, Any] = json.loads(run(argv, env=self._environment))
        return found

    def alone(self) -> AbstractContextManager[bool]:
        return self._embedded.alone()

    def _run(self, *arguments: str) -> Result:
        if arguments[0] in ("preview", "up"):
            self._pulumi("stack", "select", "--create", self._stack, quiet=True)
        if arguments[0] != "preview":
            # The CLI takes the lock of a killed run for a living one's, and does not wait.
            self._embedded.wait()
        status = self._pulumi(*arguments, "--stack", self._stack)
        return Result(status == 0, f"pulumi {arguments[0]} ended with status {status}")

    def _pulumi(self, *arguments: str, quiet: bool = False) -> int:
        output = subprocess.DEVNULL if quiet else None
        argv = ["pulumi", *arguments, "--non-interactive"]
        return subprocess.run(
            argv, cwd=PROJECT, env=self._environment, stdout=output, check=False
        ).returncode


def environment() -> dict[str, str]:
    """Return the environment in which the Pulumi CLI works on the same state."""
    # A passphrase of the user's own would win over the file.
    inherited = {k: v for k, v in os.environ.items() if k != "PULUMI_CONFIG_PASSPHRASE"}
    return {
        **inherited,
        "PULUMI_BACKEND_URL": f"file://{STATE}",
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(PASSPHRASE),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }
