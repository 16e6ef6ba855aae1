"""Running the program: a child that registers resources, and what its end means."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

from fleetfoot.engine import _runner
from fleetfoot.engine._monitor import Monitor
from fleetfoot.engine._process import Child

if TYPE_CHECKING:
    from fleetfoot.engine._planner import Planner
    from fleetfoot.engine._run import Run

# The SDK gives each registration a thread; more than this many at once do not happen.
_THREADS: Final = 256


def run_program(run: Run, planner: Planner) -> None:
    """Runs the program to its end.

    Args:
        run: The run that it is part of.
        planner: What its registrations are planned by.
    """
    monitor = Monitor(run, planner)
    child = Child(
        {
            "kind": "program",
            "main": str(run.project.main),
            "threads": _THREADS,
            "config": run.config.values,
            "secret_keys": sorted(run.config.secret),
            "settings": {
                "project": run.project.name,
                "stack": run.stack,
                "organization": "organization",
                "parallel": run.parallel,
                "dry_run": run.deployment.preview,
                "monitor": monitor.address,
                "engine": monitor.address,
                "root_directory": str(run.project.directory),
            },
        },
        cwd=run.project.main if run.project.main.is_dir() else run.project.main.parent,
        lock=run.lock,
        stdout=lambda line: run.sink.say("info", monitor.root_urn, line),
        stderr=lambda line: run.sink.say("info#err", monitor.root_urn, line),
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )

    def stop() -> None:
        run.deployment.drain()
        child.close()

    run.on_stop = stop
    try:
        code = child.wait()
        if code:
            run.deployment.stopped.set()
    finally:
        child.close()
        # What was under way in the engine goes on to its end; the program is not there to hear it.
        run.deployment.drain()
        monitor.close()
    _judge(run, monitor, code)


def _judge(run: Run, monitor: Monitor, code: int) -> None:
    if run.interrupted.is_set() or not run.summary.ok:
        return
    if code == _runner.SHOWN:
        run.deployment.fail("The program failed; its message stands above")
    elif code < 0:
        run.deployment.fail(f"The program was killed by {signal.Signals(-code).name}")
    elif code > 0:
        run.deployment.fail(f"The program exited with non-zero exit code: {code}")
    elif not monitor.finished.is_set():
        run.deployment.fail(
            "The program ended without an error before all its resources were registered. "
            "Nothing was deleted. Look for os._exit or sys.exit in it"
        )
