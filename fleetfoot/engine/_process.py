"""The engine's side of its children."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_RUNNER: Final = Path(__file__).with_name("_runner.py")
_GRACE: Final = 5.0


class Child:
    """A Python child that ends with the engine.

    Args:
        settings: What `_runner` reads; secrets go by the environment, never the command line.
        cwd: Its working folder, and where it finds the project's modules.
        lock: The descriptor of the stack's lock, which the child keeps as long as it lives.
        stdout: Called with each line of its standard output.
        stderr: Called with each line of its standard error.
        env: Further environment variables.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        cwd: Path,
        lock: int | None,
        stdout: Callable[[str], None],
        stderr: Callable[[str], None],
        env: dict[str, str] | None = None,
    ) -> None:
        reading, self._lifeline = os.pipe()
        handles = [reading] if lock is None else [reading, lock]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-u", str(_RUNNER)],
            cwd=cwd,
            env={
                **os.environ,
                **(env or {}),
                "FLEETFOOT_ENGINE_CHILD": json.dumps({**settings, "handles": handles}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=handles,
            # An interrupt at the terminal goes to the engine alone, which lets steps finish.
            start_new_session=True,
        )
        os.close(reading)
        self._readers = [
            threading.Thread(target=_pump, args=(stream, sink), daemon=True)
            for stream, sink in ((self.process.stdout, stdout), (self.process.stderr, stderr))
        ]
        for reader in self._readers:
            reader.start()

    def wait(self) -> int:
        """Waits for the end and for the last of its output."""
        code = self.process.wait()
        for reader in self._readers:
            # A grandchild may hold the pipe open for ever.
            reader.join(timeout=_GRACE)
        return code

    def close(self) -> None:
        """Ends the child."""
        if self._lifeline < 0:
            return
        with contextlib.suppress(OSError):
            os.close(self._lifeline)
        self._lifeline = -1
        try:
            self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join(timeout=_GRACE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def _pump(stream: Any, sink: Callable[[str], None]) -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            sink(line.decode(errors="replace").rstrip("\n"))
