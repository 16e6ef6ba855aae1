"""Resources of pulumi-kubernetes: server-side apply by the official client."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any, Final

from fleetfoot.engine import _k8s_objects as objects
from fleetfoot.engine import _paths, _urn
from fleetfoot.engine._errors import InitFailedError, ProviderError, UnsupportedError
from fleetfoot.engine._k8s_client import (
    Cluster,
    Refused,
    Unreachable,
    is_conflict,
    is_missing,
    parse_kubeconfig,
)
from fleetfoot.engine._k8s_ready import Failed, ready
from fleetfoot.engine._provider import Call, Checked, Diff, Provider, ReadResult
from fleetfoot.engine._registry import Package
from fleetfoot.engine._values import Properties, Unknown, contains, equal, reveal

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleetfoot.engine._k8s_objects import Object

_TIMEOUT: Final = 600.0
# The longest pause between two attempts to make an object whose namespace or kind is missing.
_PATIENCE: Final = 8.0
# `version` is which plug-in the SDK would load.
_OPTIONS: Final = {"kubeconfig", "context", "namespace", "enableServerSideApply", "version"}
_ANNOTATIONS: Final = ("waitFor", "patchFieldManager")
_REFUSED_MODULES: Final = {
    "helm.sh": "Helm",
    "kustomize": "Kustomize",
    "yaml": "YAML files and groups",
}
_PROPAGATION: Final = {"orphan": "Orphan", "background": "Background"}


class KubernetesPackage(Package):
    """Provider resources of package `kubernetes`.

    Args:
        stopped: Set when waiting is to end early.
        warn: Called with a resource and what is to be said about it.
    """

    def __init__(self, stopped: threading.Event, warn: Callable[[str, str], None]) -> None:
        super().__init__(lambda inputs: KubernetesProvider(inputs, stopped, warn))

    def check_config(self, inputs: Properties) -> Checked:
        """Refuses the modes that only the CLI's plug-in has."""
        if others := sorted(inputs.keys() - _OPTIONS):
            raise UnsupportedError(f"The kubernetes provider's option {', '.join(others)}")
        if reveal(inputs.get("enableServerSideApply")) in ("false", False):
            raise UnsupportedError("The kubernetes provider without server-side apply")
        return Checked(dict(inputs))

    def diff_config(self, old: Properties, new: Properties) -> Diff:
        """Objects move only when the active cluster is another one."""
        old, new = reveal(old), reveal(new)
        changed = sorted(
            key
            for key in old.keys() | new.keys()
            if not equal(old.get(key), new.get(key)) and key != "version"
        )
        if not changed:
            return Diff(not equal(old, new), changed=["version"])
        keys = [key for key in changed if key in ("kubeconfig", "context")]
        if unknown := [key for key in keys if isinstance(new[key], Unknown)]:
            return Diff(True, unknown, unknown)
        before, after = _active_cluster(old), _active_cluster(new)
        moved = before is not None and after is not None and before != after
        return Diff(True, keys if moved else [], changed)

    def configure(self, inputs: Properties) -> Provider:
        """Connects on first use; with an unknown kubeconfig, never."""
        return Provider() if contains(inputs, Unknown) else super().configure(inputs)


class KubernetesProvider(Provider):
    """The objects of one cluster.

    Args:
        inputs: The provider resource's inputs.
        stopped: Set when waiting is to end early.
        warn: Called with a resource and what is to be said about it.
    """

    def __init__(
        self, inputs: Properties, stopped: threading.Event, warn: Callable[[str, str], None]
    ) -> None:
        self._inputs, self._stopped, self._warn = inputs, stopped, warn
        self._lock, self._first = threading.Lock(), threading.Lock()
        self._connected: Cluster | None = None
        self._silent: Unreachable | None = None

    @property
    def _cluster(self) -> Cluster:
        with self._lock:
            if self._connected is None:
                self._connected = Cluster(self._inputs, self._stopped)
            return self._connected

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            if self._connected is not None:
                self._connected.close()
                self._connected = None

    def check(self, call: Call) -> Checked:
        """Normalises, names, and puts into the provider's namespace."""
        _refuse(call.urn)
        obj = objects.normalise(objects.to_object(call.inputs))
        old = objects.normalise(objects.to_object(call.old_inputs))
        for name in _ANNOTATIONS:
            if objects.annotation(obj, f"pulumi.com/{name}"):
                raise UnsupportedError(f"The annotation pulumi.com/{name}")
        objects.give_name(obj, old, call.urn)
        if objects.metadata(obj).get("generateName"):
            raise ProviderError(
                "the `.metadata.generateName` field is not supported in Server-Side Apply mode"
            )
        namespace = reveal(self._inputs.get("namespace"))
        meta = obj.get("metadata")
        bare = isinstance(meta, dict) and not meta.get("namespace")
        if namespace and isinstance(meta, dict) and bare and self._cluster.is_namespaced(obj):
            meta["namespace"] = namespace
        objects.mark_secrets(obj, call.inputs)
        return Checked(obj)

    def diff(self, call: Call) -> Diff:
        """Compares what the server made of the old inputs with the new ones."""
        changes = objects.compare(call.old_outputs, call.inputs)
        ignored = _paths.touch(call.ignore, [path for path, _ in changes])
        changes = [(path, forced) for path, forced in changes if path not in ignored]
        replaces = [path for path, forced in changes if forced]
        new = objects.to_object(call.inputs)
        _, live = objects.from_outputs(call.old_outputs)
        first = (
            bool(replaces)
            and bool(objects.name_of(new))
            and objects.annotation(new, objects.AUTONAMED) != "true"
            and objects.name_of(new) == objects.name_of(live)
            and (objects.namespace_of(new) or "default")
            == (objects.namespace_of(live) or "default")
        )
        return Diff(bool(changes), replaces, [path for path, _ in changes], first)

    def create(self, call: Call) -> tuple[str, Properties]:
        """Applies a new object and waits until it is ready."""
        obj = objects.to_object(call.inputs)
        manager = objects.new_field_manager()
        if call.preview:
            return "", self._previewed(call, obj, manager)
        live = self._applied(call, obj, manager)
        return self._awaited(call, obj, live, manager)

    def _applied(self, call: Call, obj: Object, manager: str) -> Object:
        """Applies, and gives namespaces and kinds that are just coming up some time."""
        force = call.resumed or _forced(obj)
        pause = 0.5
        while True:
            try:
                if not call.resumed and self._cluster.read(obj) is not None:
                    raise ProviderError(
                        f"{obj.get('kind')} {objects.object_id(obj)} exists already and is not "
                        "this stack's. Nothing was changed. Rename the resource or remove the "
                        "object"
                    )
                return self._cluster.apply(obj, manager, force=force)
            except Refused as error:
                if not is_missing(error) or pause > _PATIENCE:
                    raise _explained(error, call.urn, manager) from error
            if self._stopped.wait(pause):
                raise ProviderError("the run was interrupted before the object was made")
            pause *= 2
            self._cluster.forget_kinds()

    def _awaited(
        self, call: Call, obj: Object, live: Object, manager: str
    ) -> tuple[str, Properties]:
        missing: list[str] = []
        if objects.annotation(obj, "pulumi.com/skipAwait") != "true":
            live, missing = self._cluster.await_ready(live, _timeout(call, obj))
        if obj.get("kind") == "CustomResourceDefinition":
            self._cluster.forget_kinds()
        version = str(
            reveal(call.old_outputs.get(objects.INITIAL_VERSION)) or obj.get("apiVersion")
        )
        outputs = objects.to_outputs(call.inputs, live, version, manager)
        if missing:
            raise InitFailedError(
                objects.object_id(live),
                outputs,
                None,
                [f"{obj.get('kind')} {objects.object_id(live)} is not ready: {missing[0]}"],
            )
        return objects.object_id(live), outputs

    def _previewed(self, call: Call, obj: Object, manager: str) -> Properties:
        """The server's own answer to what would be, if it can be asked."""
        if contains(obj, Unknown):
            return dict(call.inputs)
        try:
            live = self._cluster.apply(obj, manager, force=True, dry_run=True)
        except ProviderError:
            return dict(call.inputs)
        live.pop("status", None)
        return objects.to_outputs(call.inputs, live, str(obj.get("apiVersion")), manager)

    def update(self, call: Call) -> Properties:
        """Applies the new inputs and waits until the object is ready."""
        obj = objects.normalise(objects.to_object(call.inputs))
        manager = str(reveal(call.old_outputs.get(objects.FIELD_MANAGER, "pulumi-kubernetes")))
        if call.preview:
            return self._previewed(call, obj, manager)
        _, known = objects.from_outputs(call.old_outputs)
        obj.setdefault("metadata", {}).setdefault("name", objects.name_of(known))
        live = self._cluster.read(obj)
        if live is None:
            raise ProviderError(
                f"{obj.get('kind')} {objects.object_id(obj)} is gone. Nothing was changed. "
                "Run refresh first"
            )
        for path in call.ignore:
            _leave(obj, live, _paths.parse(path))
        force = _forced(obj) or not live["metadata"].get("managedFields")
        try:
            fresh = self._cluster.apply(obj, manager, force=force)
        except Refused as error:
            raise _explained(error, call.urn, manager) from error
        return self._awaited(call, obj, fresh, manager)[1]

    def read(self, call: Call) -> ReadResult:
        """Looks at the object and at what it lacks.

        While the cluster does not answer (its machines may be what this run is to mend), nothing is
        known: state stays as it is. The first object that waits for it waits for all.
        """
        try:
            self._reach()
            return self._read(call)
        except Unreachable as error:
            self._warn(call.urn, f"{error}; it is taken to be as it was")
            return ReadResult(call.id, call.old_outputs, call.inputs)

    def _reach(self) -> None:
        """Connects; where that failed once while objects were read, says so at once."""
        with self._first:
            if self._silent is None:
                try:
                    _ = self._cluster
                except Unreachable as error:
                    self._silent = error
            if self._silent is not None:
                raise self._silent

    def _read(self, call: Call) -> ReadResult:
        known, last = objects.from_outputs(call.old_outputs)
        inputs = objects.normalise(objects.to_object(call.inputs) or known)
        live = self._cluster.read(_addressed(last or inputs, call.id))
        if live is None:
            return ReadResult("", {})
        fresh = objects.prune(live, inputs)
        version = str(
            reveal(call.old_outputs.get(objects.INITIAL_VERSION)) or inputs.get("apiVersion")
        )
        manager = reveal(call.old_outputs.get(objects.FIELD_MANAGER)) or objects.new_field_manager()
        seen = objects.to_object(fresh)
        objects.mark_secrets(fresh, call.inputs)
        outputs = objects.to_outputs(_as_given(seen, call.inputs), live, version, str(manager))
        missing = ""
        if objects.annotation(inputs, "pulumi.com/skipAwait") != "true":
            try:
                missing = ready(live, self._cluster)
            except Failed as error:
                missing = str(error)
        return ReadResult(call.id, outputs, fresh, [missing] if missing else [])

    def delete(self, call: Call) -> None:
        """Removes the object and waits until it is gone."""
        inputs, last = objects.from_outputs(call.old_outputs)
        known = last or objects.to_object(call.inputs)
        obj = _addressed(known, call.id)
        manager = reveal(call.old_outputs.get(objects.FIELD_MANAGER))
        live = self._cluster.read(obj)
        if live is None or (not manager and not _ours(live)):
            # Without a recorded manager the create never ended: what is there may be another's.
            return
        policy = objects.annotation(inputs, "pulumi.com/deletionPropagationPolicy").lower()
        if not self._cluster.delete(live, _PROPAGATION.get(policy, "Foreground")):
            return
        if objects.annotation(inputs, "pulumi.com/skipAwait") == "true":
            return
        if not self._cluster.await_gone(live, _timeout(call, inputs)):
            raise ProviderError(
                f"{known.get('kind')} {objects.object_id(live)} is being deleted but still there; "
                "its finalizers: "
                + (", ".join(live["metadata"].get("finalizers") or ["none known"]))
            )

    def pending_id(self, call: Call) -> str:
        """Every object's id stands in its inputs."""
        return objects.object_id(objects.to_object(call.inputs))


def _refuse(urn: str) -> None:
    kind = _urn.kind(urn)
    module = kind.split(":")[1]
    for prefix, what in _REFUSED_MODULES.items():
        if module.startswith(prefix):
            raise UnsupportedError(f"{what} of pulumi-kubernetes ({kind})")
    for suffix, what in (("List", "A list as a resource"), ("Patch", "A patch of an object")):
        if kind.endswith(suffix):
            raise UnsupportedError(f"{what} ({kind})")


def _active_cluster(inputs: Properties) -> Any:
    document = parse_kubeconfig(inputs.get("kubeconfig")) if inputs.get("kubeconfig") else {}
    context = inputs.get("context") or document.get("current-context")
    contexts = {each["name"]: each.get("context") or {} for each in document.get("contexts") or ()}
    clusters = {each["name"]: each.get("cluster") for each in document.get("clusters") or ()}
    if context not in contexts:
        return None
    return clusters.get(contexts[context].get("cluster"))


def _addressed(obj: Object, object_id: str) -> Object:
    namespace, _, name = object_id.rpartition("/")
    return {
        "apiVersion": obj.get("apiVersion"),
        "kind": obj.get("kind"),
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
    }


def _forced(obj: Object) -> bool:
    return objects.annotation(obj, "pulumi.com/patchForce") == "true"


def _timeout(call: Call, obj: Object) -> float:
    if call.timeout:
        return call.timeout
    text = objects.annotation(obj, "pulumi.com/timeoutSeconds")
    return float(text) if text.isdigit() else _TIMEOUT


def _explained(error: Refused, urn: str, manager: str) -> ProviderError:
    if is_conflict(error):
        return ProviderError(
            f"field manager {manager!r} had an apply conflict: {error}. The object was not "
            "changed. Leave the field out, or annotate it with pulumi.com/patchForce: 'true'"
        )
    if is_missing(error):
        return ProviderError(
            f"{error}. {_urn.name(urn)} was not applied. Check that its namespace and, for custom "
            "resources, the CustomResourceDefinition are made before it (depends_on)"
        )
    return error


def _ours(live: Object) -> bool:
    return any(
        str(entry.get("manager", "")).startswith("pulumi-kubernetes")
        for entry in live["metadata"].get("managedFields") or ()
    )


def _leave(obj: Object, live: Object, path: list[str | int]) -> None:
    """Leaves an ignored field as it is: to apply what is there takes it from nobody."""
    parent: Any = obj
    value: Any = live
    for part in path[:-1]:
        parent = parent.get(part) if isinstance(parent, dict) else None
        value = value.get(part) if isinstance(value, dict) else None
    if path and isinstance(parent, dict) and isinstance(value, dict) and path[-1] in value:
        parent[path[-1]] = value[path[-1]]


def _as_given(fresh: Object, inputs: Properties) -> Properties:
    """The refreshed inputs with the secrets that the old ones had."""
    result: Properties = copy.deepcopy(fresh)
    objects.mark_secrets(result, inputs)
    return result
