"""The engine: preview, up, refresh, destroy, outputs."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fleetfoot.engine import _lock
from fleetfoot.engine._backend import Backend
from fleetfoot.engine._events import EventSink, Summary
from fleetfoot.engine._graph import is_stack
from fleetfoot.engine._project import Config, Project, load_config, read_salt
from fleetfoot.engine._run import Run
from fleetfoot.engine._secrets import Crypter
from fleetfoot.engine._snapshot import Snapshot
from fleetfoot.engine._state import Checkpoint, ResourceState, recorded_salt
from fleetfoot.engine._traces import Traces
from fleetfoot.engine._values import Secret, reveal, unseal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_HIDDEN: Final = "[secret]"


class Engine:
    """Runs a Pulumi program on a stack in a file backend.

    Args:
        project_dir: Where Pulumi.yaml is.
        stack: The stack's name.
        backend_url: `file://` and the folder that holds `.pulumi`.
        passphrase: The stack's passphrase; it may be empty.
        parallel: How many steps may run side by side.
        display: Where events go; nowhere by default.
        lock_wait: Seconds to wait for another run on this stack to end; 0 says at once who it is.
    """

    def __init__(
        self,
        project_dir: Path,
        stack: str,
        *,
        backend_url: str,
        passphrase: str,
        parallel: int = 8,
        display: EventSink | None = None,
        lock_wait: float = 0.0,
    ) -> None:
        self._project = Project.load(Path(project_dir).resolve())
        self._stack = stack
        self._backend = Backend(backend_url, self._project.name, stack)
        self._passphrase = passphrase
        self._parallel = parallel
        self._sink = display or EventSink()
        self._lock_wait = lock_wait
        self._crypter: Crypter | None = None

    def preview(self, targets: Collection[str] = ()) -> Summary:
        """What `up` would do. Nothing is changed, and no lock is needed.

        Args:
            targets: The only URNs that may change; none means all.
        """
        with self._run("preview", lock=None) as run:
            run.program(targets)
            return run.summary

    def up(self, refresh: bool = False, targets: Collection[str] = ()) -> Summary:
        """Makes what the program declares.

        Args:
            refresh: Whether to look at every resource first.
            targets: The only URNs that may change; none means all.
        """
        with self._locked("update") as run:
            if refresh:
                run.refresh()
            if run.summary.ok:
                run.program(targets)
            return run.summary

    def refresh(self) -> Summary:
        """Makes state say what is."""
        with self._locked("refresh") as run:
            run.refresh()
            return run.summary

    def destroy(self) -> Summary:
        """Deletes all resources of the stack."""
        with self._locked("destroy") as run:
            run.destroy()
            return run.summary

    def wait(self) -> None:
        """Waits for other runs to end and removes the locks of dead ones, for the CLI's sake."""
        with _lock.hold(self._backend.locks, self._lock_wait, self._tell):
            pass

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Keeps other runs out, without waiting for one; gives whether the state is empty.

        Raises:
            LockedError: Another run has the stack.
        """
        with _lock.hold(self._backend.locks, 0, self._tell):
            yield not self.resources()

    def outputs(self, show_secrets: bool = False) -> dict[str, Any]:
        """The stack's outputs.

        Args:
            show_secrets: Whether to decrypt; else secrets read `[secret]`.
        """
        for resource in self.resources():
            if is_stack(resource):
                return {
                    key: reveal(value) if show_secrets else _hide(value)
                    for key, value in resource.outputs.items()
                }
        return {}

    def resources(self, show_secrets: bool = False) -> list[ResourceState]:
        """What the stack holds, in state order.

        Args:
            show_secrets: Whether to decrypt; else secrets stay Secret objects.
        """
        found = self._load().resources
        if show_secrets:
            for resource in found:
                resource.inputs = reveal(resource.inputs)
                resource.outputs = reveal(resource.outputs)
        return found

    def _load(self) -> Checkpoint:
        document = self._backend.load()
        crypter = self._crypt(document)
        if document is None:
            return Checkpoint(self._backend.qualified)
        salt = recorded_salt(document)
        if salt in (None, crypter.state):
            return Checkpoint.from_json(document, crypter.decrypt)
        # The configuration has another salt than the checkpoint: its ciphertexts are not ours.
        former = Crypter(self._passphrase, salt)
        checkpoint = Checkpoint.from_json(document, former.decrypt)
        for resource in checkpoint.resources + [item.resource for item in checkpoint.pending]:
            unseal([resource.inputs, resource.outputs])
        return checkpoint

    def _crypt(self, document: dict[str, Any] | None) -> Crypter:
        """The stack's crypter: by the configuration's salt, the checkpoint's, or a new one."""
        if self._crypter is None:
            salt = read_salt(self._project, self._stack)
            salt = salt or (recorded_salt(document) if document is not None else None)
            self._crypter = Crypter(self._passphrase, salt)
        return self._crypter

    def _tell(self, line: str) -> None:
        self._sink.say("info", "", line)

    @contextlib.contextmanager
    def _locked(self, kind: str) -> Iterator[Run]:
        with (
            _lock.hold(self._backend.locks, self._lock_wait, self._tell) as lock,
            self._run(kind, lock) as run,
        ):
            yield run

    @contextlib.contextmanager
    def _run(self, kind: str, lock: int | None) -> Iterator[Run]:
        started = time.time()
        base = self._load()
        crypter = self._crypt(None)
        config = load_config(self._project, self._stack, crypter.decrypt)

        def save(checkpoint: Checkpoint) -> None:
            self._backend.save(checkpoint.to_json(crypter.encrypt, crypter.state))

        preview = kind == "preview"
        run = Run(
            self._project,
            self._stack,
            config,
            Snapshot(base, None if preview else save),
            self._sink,
            Traces(self._backend.traces),
            Summary(kind),
            parallel=self._parallel,
            lock=lock,
        )
        try:
            with _interruptible(run.stop):
                yield run
        finally:
            run.registry.close()
            self._sink.close()
            run.summary.seconds = time.time() - started
            if not preview:
                run.snapshot.write()
                self._backend.record(_update(run.summary, config, started))


@contextlib.contextmanager
def _interruptible(stop: Any) -> Iterator[None]:
    """The first SIGINT or SIGTERM stops the run in good order, the second ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, _frame: Any) -> None:
        for each in _SIGNALS:
            signal.signal(each, lambda *_: os._exit(128 + number))
        # Not here: the main thread may hold the very locks that stopping needs.
        threading.Thread(target=stop, daemon=True).start()

    before = {each: signal.signal(each, on_signal) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _update(summary: Summary, config: Config, started: float) -> dict[str, Any]:
    """The record of a run in the history, as the CLI writes it."""
    return {
        "kind": summary.kind,
        "startTime": int(started),
        "message": "",
        "environment": {"exec.kind": "fleetfoot"},
        "config": config.recorded,
        "version": 0,
        "result": "succeeded" if summary.ok else "failed",
        "endTime": int(time.time()),
        "resourceChanges": dict(summary.counts),
    }


def _hide(value: Any) -> Any:
    if isinstance(value, Secret):
        return _HIDDEN
    if isinstance(value, dict):
        return {key: _hide(item) for key, item in value.items()}
    return [_hide(item) for item in value] if isinstance(value, list) else value
