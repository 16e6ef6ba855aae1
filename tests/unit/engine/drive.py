"""Runs the engine as a process that tests may kill.

SAVES=<n> kills it before its n-th save of state, so that every gap between two saves is met.
"""

import os
import signal
import sys
from pathlib import Path

from fleetfoot.engine import Display, Engine, EngineError, _secrets
from fleetfoot.engine._backend import Backend

_secrets._ITERATIONS = int(os.environ["QUICK_KEYS"])  # type: ignore[misc]
if saves := int(os.environ.get("SAVES", "0")):
    save = Backend.save
    left = [saves]

    def counted(self: Backend, document: dict) -> None:  # type: ignore[type-arg]
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, document)

    Backend.save = counted  # type: ignore[method-assign]

folder, backend, method = sys.argv[1:]
try:
    summary = getattr(
        Engine(
            Path(folder),
            "dev",
            backend_url=f"file://{backend}",
            passphrase="correct horse",
            display=Display(),
        ),
        method,
    )()
except EngineError as error:
    print(error)
    sys.exit(3)
sys.exit(0 if summary.ok else 1)
