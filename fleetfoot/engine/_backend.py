"""The CLI's file backend: layout, atomic writes, history, backups."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fleetfoot.engine._errors import EngineError, UnsupportedError


class Backend:
    """One stack's files below `<backend>/.pulumi`.

    Args:
        url: `file://` and a path; `~` is the home folder, as for the CLI.
        project: The project's name.
        stack: The stack's name.
    """

    def __init__(self, url: str, project: str, stack: str) -> None:
        self.root = _path(url) / ".pulumi"
        self._stack = stack
        self._meta()
        self.path = self.root / "stacks" / project / f"{stack}.json"
        for suffix in (".gz", ".zst"):
            if self.path.with_name(self.path.name + suffix).exists():
                raise UnsupportedError(f"The compressed checkpoint {self.path}{suffix}")
        self._history = self.root / "history" / project / stack
        self._backups = self.root / "backups" / project / stack
        # The CLI's name of a stack in this backend, which also names the folder of its locks.
        self.qualified = f"organization/{project}/{stack}"
        self.locks = self.root / "locks" / "organization" / project / stack
        # Not the CLI's: what this engine keeps for the curious.
        self.traces = self.root.parent / "traces" / project / f"{stack}.log"

    def _meta(self) -> None:
        path = self.root / "meta.yaml"
        if path.exists():
            if "version: 1" not in path.read_text():
                raise UnsupportedError(f"The state layout of {path}")
        elif any((self.root / "stacks").glob("*.json")):
            raise UnsupportedError(f"The layout without projects in {self.root}")
        else:
            write_atomically(path, "version: 1\n")

    def load(self) -> dict[str, Any] | None:
        """The checkpoint's document, or None for a stack that was never saved."""
        try:
            document = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise EngineError(
                f"The checkpoint {self.path} is not JSON: {error}",
                "What the stack owns is unknown, so nothing was done",
                f"Restore it from {self.path}.bak or {self._backups}",
            ) from error
        if not isinstance(document, dict):
            raise EngineError(
                f"The checkpoint {self.path} is no JSON object",
                "What the stack owns is unknown, so nothing was done",
                f"Restore it from {self.path}.bak or {self._backups}",
            )
        return document

    def save(self, document: dict[str, Any]) -> None:
        """Replaces the checkpoint; a reader sees the old or the new file, never a part."""
        if self.path.exists():
            backup = self.path.with_name(self.path.name + ".bak")
            _link_over(self.path, backup)
        write_atomically(self.path, dump(document))

    def record(self, update: dict[str, Any]) -> None:
        """Adds a finished update to the history, and the checkpoint to history and backups."""
        stamp = time.time_ns()
        base = self._history / f"{self._stack}-{stamp}"
        write_atomically(base.with_name(base.name + ".history.json"), dump(update))
        if self.path.exists():
            copy(self.path, base.with_name(base.name + ".checkpoint.json"))
            copy(self.path, self._backups / f"{self._stack}.{stamp}.json")


def dump(document: dict[str, Any]) -> str:
    """JSON as the CLI writes it to files."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def copy(source: Path, target: Path) -> None:
    """Copies a file into a folder that may not exist yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o600)


def write_atomically(path: Path, text: str) -> None:
    """Writes beside the path, syncs, and renames over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    spare = Path(name)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        spare.replace(path)
    except BaseException:
        spare.unlink(missing_ok=True)
        raise


def _link_over(source: Path, target: Path) -> None:
    """Makes target the same file as source: a copy without writing, as files are only replaced."""
    spare = target.with_name(f".{target.name}.tmp")
    spare.unlink(missing_ok=True)
    spare.hardlink_to(source)
    spare.replace(target)


def _path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise UnsupportedError(f"The backend {url!r}")
    return Path(unquote(parts.netloc + parts.path)).expanduser().resolve()
