"""Dynamic providers, through the SDK's own server as a child process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import grpc
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from fleetfoot.engine import _urn
from fleetfoot.engine._errors import EngineError, ProviderError, ProviderGoneError
from fleetfoot.engine._process import Child
from fleetfoot.engine._provider import Call, Checked, Diff, ReadResult
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
)
_START: Final = 60.0


class DynamicProvider:
    """The server that unpickles and runs the program's provider classes.

    It does not understand secrets: it gets plain values, and what it returns is marked again by
    what was sent.

    Args:
        project: The project's name.
        directory: Where its modules are.
        config: The stack's configuration.
        lock: The descriptor that its process keeps.
        log: Called with each line that a provider prints.
    """

    def __init__(
        self,
        project: str,
        directory: Path,
        config: Properties,
        lock: int | None,
        log: Callable[[str, str], None],
    ) -> None:
        self._port: str | None = None
        self._channel: grpc.Channel | None = None
        self._ready = threading.Event()
        self._child = Child(
            {"kind": "dynamic"},
            cwd=directory,
            lock=lock,
            stdout=lambda line: self._on_line(line, log),
            stderr=lambda line: log("info", line),
            env={"PULUMI_PROJECT": project},
        )
        threading.Thread(target=self._on_exit, daemon=True).start()
        if not self._ready.wait(_START) or self._port is None:
            self._child.close()
            raise EngineError(
                "The server of dynamic providers did not start",
                "No resource of package pulumi-python can be handled",
                "Its own message stands above; it needs `pulumi` and `dill` in this interpreter",
            )
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{self._port}", options=list(CHANNEL_OPTIONS)
        )
        self._stub: Any = provider_pb2_grpc.ResourceProviderStub(self._channel)
        self._stub.Configure(
            provider_pb2.ConfigureRequest(
                args=to_struct(config, secrets=True), acceptSecrets=True, acceptResources=True
            )
        )

    def _on_line(self, line: str, log: Callable[[str, str], None]) -> None:
        if self._port is None and line.strip().isdigit():
            self._port = line.strip()
            self._ready.set()
        else:
            log("info", line)

    def _on_exit(self) -> None:
        self._child.process.wait()
        self._ready.set()

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
        inputs = from_struct(response.inputs)
        annotate_secrets(inputs, call.inputs)
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
        outputs = from_struct(response.properties)
        annotate_secrets(outputs, call.inputs)
        return response.id, outputs

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
        outputs = from_struct(response.properties)
        annotate_secrets(outputs, call.inputs)
        return outputs

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
        state = from_struct(response.properties)
        annotate_secrets(state, call.old_outputs)
        fresh: Properties | None = None
        if response.HasField("inputs"):
            fresh = from_struct(response.inputs)
            annotate_secrets(fresh, call.inputs)
        return ReadResult(response.id, state, fresh)

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
        self._child.close()

    def _call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._stub, method)(request)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise ProviderGoneError(
                    "the server of dynamic providers ended; its last words stand above"
                ) from error
            raise ProviderError(_explain(error)) from error


def _names(call: Call) -> dict[str, Any]:
    return {"urn": call.urn, "name": _urn.name(call.urn), "type": _urn.kind(call.urn)}


def _explain(error: grpc.RpcError) -> str:
    """An exception of ours as its sentence; any other with its traceback and lines."""
    text = (error.details() or "").strip()
    trace, _, last = text.rpartition("\nfleetfoot.")
    return last.partition(": ")[2] if trace and ": " in last else text
