"""Dynamic providers, through the SDK's own server as a child process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import grpc
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from fleetfoot.engine import _urn
from fleetfoot.engine._errors import EngineError, ProviderError, ProviderGoneError
from fleetfoot.engine._process import Child
from fleetfoot.engine._provider import Call, Checked, Diff, Provider, ReadResult
from fleetfoot.engine._values import (
    Properties,
    annotate_secrets,
    from_struct,
    reveal,
    to_struct,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Tracebacks come as metadata.
    ("grpc.max_metadata_size", 1 << 24),
    ("grpc.absolute_max_metadata_size", 1 << 24),
)
_START: Final = 60.0


class DynamicProvider(Provider):
    """The server that unpickles and runs the program's provider classes, started when needed.

    It does not understand secrets: it gets plain values, and what it returns is marked again by
    what was sent.

    Args:
        project: The project's name.
        directory: Where its modules are.
        config: The stack's configuration.
        lock: The descriptor that its process keeps.
        log: Called with each line that a provider prints.
        shorten: Makes a sentence of a traceback.
    """

    def __init__(
        self,
        project: str,
        directory: Path,
        config: Properties,
        *,
        lock: int | None,
        log: Callable[[str], None],
        shorten: Callable[[str], str],
    ) -> None:
        self._log, self._shorten = log, shorten
        self._config = config
        self._begin: Callable[[], Child] = lambda: Child(
            {"kind": "dynamic"},
            cwd=directory,
            lock=lock,
            stdout=self._on_line,
            stderr=log,
            env={"PULUMI_PROJECT": project},
        )
        self._starting = threading.Lock()
        self._port: str | None = None
        self._answered = threading.Event()
        self._child: Child | None = None
        self._channel: grpc.Channel | None = None
        self._stub: Any = None

    def _start(self) -> Any:
        """The stub of the server, which runs from now on."""
        with self._starting:
            if self._channel is None:
                self._child = self._begin()
                threading.Thread(target=self._on_exit, args=(self._child,), daemon=True).start()
                if not self._answered.wait(_START) or self._port is None:
                    raise EngineError(
                        "The server of dynamic providers did not start",
                        "No resource of package pulumi-python can be handled",
                        "Its own message stands above; it needs `pulumi` and `dill` in this "
                        "interpreter",
                    )
                self._channel = grpc.insecure_channel(
                    f"127.0.0.1:{self._port}", options=list(CHANNEL_OPTIONS)
                )
                self._stub = provider_pb2_grpc.ResourceProviderStub(self._channel)
                self._stub.Configure(
                    provider_pb2.ConfigureRequest(
                        args=to_struct(self._config, secrets=True),
                        acceptSecrets=True,
                        acceptResources=True,
                    )
                )
            return self._stub

    def _on_line(self, line: str) -> None:
        if self._port is None and line.strip().isdigit():
            self._port = line.strip()
            self._answered.set()
        else:
            self._log(line)

    def _on_exit(self, child: Child) -> None:
        child.process.wait()
        self._answered.set()

    def check(self, call: Call) -> Checked:
        """Calls the class's `check`."""
        response = self._call(
            "Check",
            provider_pb2.CheckRequest(
                olds=to_struct(call.old_inputs, secrets=False, unknowns=call.preview),
                news=to_struct(call.inputs, secrets=False, unknowns=call.preview),
                **_names(call),
            ),
        )
        inputs = _received(response.inputs, call.inputs)
        return Checked(inputs, [(f.property, f.reason) for f in response.failures])

    def diff(self, call: Call) -> Diff:
        """Calls the class's `diff`."""
        response = self._call(
            "Diff",
            provider_pb2.DiffRequest(
                id=call.id,
                old_inputs=to_struct(call.old_inputs, secrets=False),
                olds=to_struct(call.old_outputs, secrets=False),
                news=to_struct(call.inputs, secrets=False),
                ignoreChanges=call.ignore,
                **_names(call),
            ),
        )
        states = provider_pb2.DiffResponse
        changes = {states.DIFF_SOME: True, states.DIFF_NONE: False}.get(response.changes)
        return Diff(
            changes, list(response.replaces), list(response.diffs), response.deleteBeforeReplace
        )

    def create(self, call: Call) -> tuple[str, Properties]:
        """Calls the class's `create`; in a preview the inputs stand for the outputs."""
        if call.preview:
            return "", dict(call.inputs)
        response = self._call(
            "Create",
            provider_pb2.CreateRequest(
                properties=to_struct(call.inputs, secrets=False),
                timeout=call.timeout,
                **_names(call),
            ),
        )
        if not response.id:
            raise ProviderError("the provider returned no id from create")
        return response.id, _received(response.properties, call.inputs)

    def update(self, call: Call) -> Properties:
        """Calls the class's `update`; in a preview the inputs stand for the outputs."""
        if call.preview:
            return dict(call.inputs)
        response = self._call(
            "Update",
            provider_pb2.UpdateRequest(
                id=call.id,
                olds=to_struct(call.old_outputs, secrets=False),
                old_inputs=to_struct(call.old_inputs, secrets=False),
                news=to_struct(call.inputs, secrets=False),
                timeout=call.timeout,
                **_names(call),
            ),
        )
        return _received(response.properties, call.inputs)

    def read(self, call: Call) -> ReadResult:
        """Calls the class's `read`."""
        response = self._call(
            "Read",
            provider_pb2.ReadRequest(
                id=call.id,
                properties=to_struct(call.old_outputs, secrets=False),
                inputs=to_struct(call.inputs, secrets=False),
                **_names(call),
            ),
        )
        state = _received(response.properties, call.old_outputs)
        known = response.HasField("inputs")
        return ReadResult(
            response.id, state, _received(response.inputs, call.inputs) if known else None
        )

    def delete(self, call: Call) -> None:
        """Calls the class's `delete`."""
        self._call(
            "Delete",
            provider_pb2.DeleteRequest(
                id=call.id,
                properties=to_struct(call.old_outputs, secrets=False),
                old_inputs=to_struct(call.inputs, secrets=False),
                timeout=call.timeout,
                **_names(call),
            ),
        )

    def pending_id(self, call: Call) -> str:
        """The id that the class's `check` put into the inputs, if it did."""
        return str(reveal(call.inputs.get("__id", "")))

    def close(self) -> None:
        """Ends the server."""
        if self._channel is not None:
            self._channel.close()
        if self._child is not None:
            self._child.close()

    def _call(self, method: str, request: Any) -> Any:
        stub = self._start()
        try:
            return getattr(stub, method)(request)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise ProviderGoneError(
                    "the server of dynamic providers ended; its last words stand above"
                ) from error
            raise ProviderError(self._shorten((error.details() or "").strip())) from error


def _names(call: Call) -> dict[str, Any]:
    return {"urn": call.urn, "name": _urn.name(call.urn), "type": _urn.kind(call.urn)}


def _received(struct: Any, like: Properties) -> Properties:
    """What a provider sent: secret where what it was sent was secret, for it sees bare values."""
    properties = from_struct(struct)
    annotate_secrets(properties, like)
    return properties
