"""The services that the program talks to: resource monitor and engine."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
from google.protobuf import empty_pb2, message_factory
from pulumi.runtime.proto import engine_pb2, resource_pb2

from fleetfoot.engine import _urn
from fleetfoot.engine._dynamic import CHANNEL_OPTIONS
from fleetfoot.engine._errors import EngineError, UnsupportedError
from fleetfoot.engine._goal import Goal
from fleetfoot.engine._planner import Op
from fleetfoot.engine._registry import INTERNAL
from fleetfoot.engine._values import Properties, equal, from_struct, to_struct

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleetfoot.engine._events import Severity
    from fleetfoot.engine._planner import Planner
    from fleetfoot.engine._run import Run
    from fleetfoot.engine._state import ResourceState

    _Method = Callable[[Any, Any], Any]

# Registrations wait for their steps, each in a thread of its own; threads start when needed.
_THREADS: Final = 512
_FEATURES: Final = {
    "secrets": resource_pb2.RESOURCE_MONITOR_FEATURE_SECRETS,
    "resourceReferences": resource_pb2.RESOURCE_MONITOR_FEATURE_RESOURCE_REFERENCES,
    "outputValues": resource_pb2.RESOURCE_MONITOR_FEATURE_OUTPUT_VALUES,
    "aliasSpecs": resource_pb2.RESOURCE_MONITOR_FEATURE_ALIAS_SPECS,
    "deletedWith": resource_pb2.RESOURCE_MONITOR_FEATURE_DELETED_WITH,
}
_REFUSED: Final = {
    "Invoke": "A function of a provider",
    "ReadResource": "Reading a resource that the stack does not own",
    "Call": "A call of a remote component's method",
    "RegisterStackTransform": "A stack transform",
    "RegisterStackInvokeTransform": "An invoke transform",
    "RegisterResourceHook": "A resource hook",
    "RegisterErrorHook": "An error hook",
    "RegisterPackage": "A parameterised package",
}
# What the SDK says when it hears that the run has failed, which has been told by then.
_ECHO: Final = "Resource monitor has terminated"
_SEVERITIES: Final[dict[int, Severity]] = {0: "debug", 1: "info", 2: "warning", 3: "error"}


class Monitor:
    """Serves one run of the program.

    Args:
        run: The run.
        planner: Decides which steps a registration needs.
    """

    def __init__(self, run: Run, planner: Planner) -> None:
        self._run, self._planner, self._deployment = run, planner, run.deployment
        self._goals: dict[str, Goal] = {}
        self._defaults: dict[tuple[str, str], str] = {}
        self._defaults_lock = threading.Lock()
        self._registered: dict[str, ResourceState] = {}
        self.finished = threading.Event()
        self.root_urn = ""
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=_THREADS), options=list(CHANNEL_OPTIONS)
        )
        resources = resource_pb2.DESCRIPTOR.services_by_name["ResourceMonitor"]
        engine = engine_pb2.DESCRIPTOR.services_by_name["Engine"]
        _serve(self._server, resources, self._resource_methods())
        _serve(self._server, engine, self._engine_methods())
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        """Stops serving; calls under way are cut off."""
        self._server.stop(0).wait()

    def register(self, request: Any) -> tuple[ResourceState, Op]:
        """Registers one resource and carries its steps out."""
        goal = Goal.parse(request, self._run.project.directory)
        if parent := self._goals.get(goal.parent):
            goal.inherit(parent)
        elif goal.parent:
            raise EngineError(
                f"The parent {goal.parent} of {goal.name!r} is not registered",
                "The resource was not registered",
                "Register the parent first",
            )
        self._choose_provider(goal)
        state, op = self._carry_out(goal)
        self._goals[state.urn] = goal
        self._registered[state.urn] = state
        return state, op

    def _carry_out(self, goal: Goal) -> tuple[ResourceState, Op]:
        with self._planner.lock:
            if self._deployment.stopped.is_set():
                raise EngineError("The run is being stopped", f"{goal.name!r} was not registered")
            try:
                actions = self._planner.plan(goal)
            except Exception as error:
                self._deployment.fail(f"{goal.type} {goal.name!r}: {error}")
                self._run.sink.say("error", goal.name, str(error))
                raise
        return self._deployment.run(actions), actions[-1].op

    def _choose_provider(self, goal: Goal) -> None:
        if not goal.custom:
            parent = self._goals.get(goal.parent)
            if parent is not None and not parent.custom:
                goal.providers = {**parent.providers, **goal.providers}
            return
        package = _urn.package(goal.type)
        if _urn.is_provider(goal.type):
            if goal.version:
                goal.inputs.update({INTERNAL: {}, "version": goal.version})
            return
        parent = self._goals.get(goal.parent)
        goal.provider = (
            goal.provider
            or goal.providers.get(package, "")
            or (parent.providers.get(package, "") if parent is not None else "")
            or self._default_provider(package, goal.version)
        )

    def _default_provider(self, package: str, version: str) -> str:
        with self._defaults_lock:
            key = (package, version)
            if key not in self._defaults:
                inputs: Properties = self._run.config.package(package)
                if version:
                    inputs.update({INTERNAL: {}, "version": version})
                suffix = f"_{version.replace('.', '_')}" if version else ""
                goal = Goal(
                    type=_urn.PROVIDER_PREFIX + package,
                    name=f"default{suffix}",
                    custom=True,
                    inputs=inputs,
                )
                state, _ = self._carry_out(goal)
                self._defaults[key] = f"{state.urn}::{state.id}"
            return self._defaults[key]

    def outputs(self, request: Any) -> None:
        """Takes the outputs of a component or of the stack."""
        state = self._registered[request.urn]
        outputs = from_struct(request.outputs)
        changed = not equal(state.outputs, outputs)
        state.outputs = outputs
        if changed and not self._deployment.preview:
            self._deployment.snapshot.write()

    def info(self) -> Any:
        """What the program may ask about the run."""
        return resource_pb2.DeploymentInfo(
            project=self._run.project.name,
            stack=self._run.stack,
            organization="organization",
            config=self._run.config.values,
            configSecretKeys=sorted(self._run.config.secret),
            dryRun=self._deployment.preview,
            parallel=self._run.parallel,
            supportedFeatures=list(_FEATURES.values()),
        )

    def say(self, request: Any) -> None:
        """Hands a message of the program on."""
        severity = _SEVERITIES.get(request.severity, "info")
        if severity == "error" and self._deployment.stopped.is_set() and _ECHO in request.message:
            severity = "debug"
        message = self._run.traces.shorten(request.message)
        if severity == "error":
            self._deployment.summary.errors.append(message.strip())
        self._run.sink.say(severity, request.urn, message)

    def _register(self, request: Any, context: Any) -> Any:
        try:
            state, op = self.register(request)
        except UnsupportedError as error:
            _abort(context, error)
        except Exception as error:
            # The failure has been told; the program ends without telling it again.
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        # A component's outputs are those that it registers itself.
        outputs = state.outputs if state.custom else {}
        return resource_pb2.RegisterResourceResponse(
            urn=state.urn,
            id=state.id,
            object=to_struct(
                outputs, secrets=request.acceptSecrets, resources=request.acceptResources
            ),
            unknown=op is Op.SKIP,
        )

    def _resource_methods(self) -> dict[str, _Method]:
        def supports(request: Any, _context: Any) -> Any:
            return resource_pb2.SupportsFeatureResponse(hasSupport=request.id in _FEATURES)

        def outputs(request: Any, _context: Any) -> Any:
            self.outputs(request)
            return empty_pb2.Empty()

        def finish(_request: Any, _context: Any) -> Any:
            self.finished.set()
            return empty_pb2.Empty()

        return {
            "GetDeploymentInfo": lambda _request, _context: self.info(),
            "SupportsFeature": supports,
            "RegisterResource": self._register,
            "RegisterResourceOutputs": outputs,
            "SignalAndWaitForShutdown": finish,
        }

    def _engine_methods(self) -> dict[str, _Method]:
        def log(request: Any, _context: Any) -> Any:
            self.say(request)
            return empty_pb2.Empty()

        def set_root(request: Any, _context: Any) -> Any:
            self.root_urn = request.urn
            return engine_pb2.SetRootResourceResponse()

        return {
            "Log": log,
            "GetRootResource": lambda _request, _context: engine_pb2.GetRootResourceResponse(
                urn=self.root_urn
            ),
            "SetRootResource": set_root,
        }


def _serve(server: grpc.Server, service: Any, methods: dict[str, _Method]) -> None:
    """Serves what there is of a service; every other request is refused in words."""
    handlers = {}
    for method in service.methods:
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(
            methods.get(method.name, _refusal(method.name)),
            request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
    handler = grpc.method_handlers_generic_handler(service.full_name, handlers)
    server.add_generic_rpc_handlers((handler,))


def _refusal(name: str) -> _Method:
    def refuse(request: Any, context: Any) -> Any:
        of = getattr(request, "tok", "") or getattr(request, "type", "")
        _abort(context, UnsupportedError(_REFUSED.get(name, name) + (f" ({of})" if of else "")))

    return refuse


def _abort(context: Any, error: UnsupportedError) -> NoReturn:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, str(error))
    raise AssertionError("abort raises")
