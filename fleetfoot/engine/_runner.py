"""The children's side: runs the program, or the SDK's dynamic-provider server.

Started by path in a fresh interpreter, so that nothing of the engine is loaded beside the program.
Both kinds end with the engine, however it ends: they hold the read end of a pipe whose write end
only the engine has.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import runpy
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pulumi
import pulumi.runtime

# The CLI's language host uses this code for "the error was already shown".
SHOWN = 32


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


def _frames_of_user(main: Path) -> str:
    """The traceback from the program's own first frame on."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    entry = main / "__main__.py" if main.is_dir() else main
    for index, frame in enumerate(frames):
        if Path(frame.filename).resolve() == entry:
            return traceback.format_exc(limit=index - len(frames))
    return traceback.format_exc()


def _program(settings: dict[str, Any]) -> int:
    pulumi.runtime.set_all_config(settings["config"], settings["secret_keys"])
    pulumi.runtime.configure(pulumi.runtime.Settings(**settings["settings"]))
    main = Path(settings["main"])
    sys.argv = [str(main)]

    def run() -> None:
        runpy.run_path(str(main), run_name="__main__")

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    # Registrations block a thread each until their step is done.
    executor = ThreadPoolExecutor(max_workers=settings["threads"])
    loop.set_default_executor(executor)
    # A failed program leaves futures behind that nobody awaits; that is no news to its user.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        loop.run_until_complete(pulumi.runtime.run_in_stack(run))
    except pulumi.RunError as error:
        pulumi.log.error(str(error))
        return 1
    except Exception:
        pulumi.log.error(
            "Program failed with an unhandled exception:\n" + _frames_of_user(main.resolve())
        )
        return SHOWN
    finally:
        executor.shutdown(wait=True)
        loop.close()
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> int:
    """Reads its settings from the environment and runs what they name."""
    settings = json.loads(os.environ.pop("FLEETFOOT_ENGINE_CHILD"))
    for handle in settings["handles"]:
        # What the provider or program starts must keep neither the lock nor the life line.
        os.set_inheritable(handle, False)
    threading.Thread(target=_watch, args=(settings["handles"][0],), daemon=True).start()
    if settings["kind"] == "program":
        return _program(settings)
    sys.path.insert(0, str(Path.cwd()))
    sys.argv = ["pulumi.dynamic"]
    runpy.run_module("pulumi.dynamic.__main__", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
