"""Running the program: a child that registers resources, and what its end means."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

from fleetfoot.engine import _runner
from fleetfoot.engine._monitor import Monitor
from fleetfoot.engine._process import Child

if TYPE_CHECKING:
    import threading

    from fleetfoot.engine._engine import _Run
    from fleetfoot.engine._planner import Planner

# The SDK gives each registration a thread; more than this many at once do not happen.
_THREADS: Final = 256


def run_program(run: _Run, planner: Planner, interrupted: threading.Event) -> None:
    """Runs the program to its end.

    Args:
        run: The run that it is part of.
        planner: What its registrations are planned by.
        interrupted: Set when the user wants no more of it.
    """
    monitor = Monitor(
        planner,
        run.deployment,
        run.config,
        run.sink,
        run.traces,
        root=run.project.directory,
        stack=run.stack,
        project=run.project.name,
        parallel=run.parallel,
    )
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
    _judge(run, monitor, code, interrupted)


def _judge(run: _Run, monitor: Monitor, code: int, interrupted: threading.Event) -> None:
    if interrupted.is_set() or not run.summary.ok:
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
