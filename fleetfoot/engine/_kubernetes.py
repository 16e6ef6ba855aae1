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
from fleetfoot.engine._values import Properties, Unknown, contains, equal, reveal

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleetfoot.engine._k8s_objects import Object

_TIMEOUT: Final = 600.0
# The longest pause between two attempts to make an object whose namespace or kind is missing.
_PATIENCE: Final = 8.0
_LEGACY: Final = frozenset({"kubectl", "before-first-apply", "pulumi-kubernetes"})
_REFUSED_MODULES: Final = {
    "helm.sh": "Helm",
    "kustomize": "Kustomize",
    "yaml": "YAML files and groups",
}
_FALSE: Final = ("false", False)
_PROPAGATION: Final = {"orphan": "Orphan", "background": "Background"}


class KubernetesPackage:
    """Provider resources of package `kubernetes`.

    Args:
        stopped: Set when waiting is to end early.
        warn: Called with a resource and what is to be said about it.
    """

    def __init__(self, stopped: threading.Event, warn: Callable[[str, str], None]) -> None:
        self._stopped, self._warn = stopped, warn

    def check_config(self, inputs: Properties) -> Checked:
        """Refuses the modes that only the CLI's plug-in has."""
        plain = reveal(inputs)
        if plain.get("renderYamlToDirectory"):
            raise UnsupportedError("The kubernetes provider's option renderYamlToDirectory")
        if plain.get("enableServerSideApply") in _FALSE:
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
        for key in ("kubeconfig", "context", "cluster"):
            if isinstance(new.get(key), Unknown):
                return Diff(True, [key], [key])
        before, after = _active_cluster(old), _active_cluster(new)
        moved = before is not None and after is not None and before != after
        keys = [key for key in changed if key in ("kubeconfig", "context", "cluster")]
        identifier = "clusterIdentifier"
        if new.get(identifier) and new.get(identifier) == old.get(identifier):
            moved = False
        elif new.get(identifier) and old.get(identifier):
            return Diff(True, [identifier], changed)
        return Diff(True, keys if moved else [], changed)

    def configure(self, inputs: Properties) -> Provider:
        """Connects on first use; with an unknown kubeconfig, never."""
        if contains(inputs, Unknown):
            return Provider()
        return KubernetesProvider(inputs, self._stopped, self._warn)


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
        self._lock = threading.Lock()
        self._connected: Cluster | None = None

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

    def _option(self, name: str) -> bool:
        return reveal(self._inputs.get(name)) in ("true", True)

    def check(self, call: Call) -> Checked:
        """Normalises, names, and puts into the provider's namespace."""
        _refuse(call.urn)
        obj = objects.normalise(objects.to_object(call.inputs))
        old = objects.normalise(objects.to_object(call.old_inputs))
        if objects.annotation(obj, "pulumi.com/waitFor"):
            raise UnsupportedError("The annotation pulumi.com/waitFor")
        if objects.is_patch(call.urn):
            if "name" not in objects.metadata(obj):
                raise ProviderError("patch resources require the `.metadata.name` field to be set")
        else:
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
        allowed = ("metadata.name", "metadata.namespace")
        replaces = [
            path
            for path, forced in changes
            if forced and (path in allowed or not objects.is_patch(call.urn))
        ]
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
        manager = objects.annotation(obj, "pulumi.com/patchFieldManager")
        manager = manager or objects.new_field_manager()
        if call.preview:
            return "", self._previewed(call, obj, manager)
        live = self._applied(call, obj, manager)
        return self._awaited(call, obj, live, manager)

    def _applied(self, call: Call, obj: Object, manager: str) -> Object:
        """Applies, and gives namespaces and kinds that are just coming up some time."""
        owned = call.resumed or self._option("upsertExistingObjects") or objects.is_patch(call.urn)
        force = call.resumed or self._force(obj)
        pause = 0.5
        while True:
            try:
                if not owned and self._cluster.read(obj) is not None:
                    raise ProviderError(
                        f"{obj.get('kind')} {objects.object_id(obj)} exists already and is not "
                        "this stack's. Nothing was changed. Rename the resource, or remove the "
                        "object, or set upsertExistingObjects on the provider to take it over"
                    )
                return self._cluster.apply(obj, manager, force=force)
            except Refused as error:
                if not is_missing(error) or pause > _PATIENCE:
                    raise _explained(error, call.urn, manager) from error
            if self._stopped.wait(pause):
                raise ProviderError("the run was interrupted before the object was made")
            pause *= 2
            self._cluster.forget_kinds()

    def _force(self, obj: Object) -> bool:
        return objects.annotation(obj, "pulumi.com/patchForce") == "true" or self._option(
            "enablePatchForce"
        )

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
        if contains(obj, Unknown) or objects.is_patch(call.urn):
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
        old_manager = str(reveal(call.old_outputs.get(objects.FIELD_MANAGER, "pulumi-kubernetes")))
        manager = objects.annotation(obj, "pulumi.com/patchFieldManager") or old_manager
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
        try:
            fresh = self._rewritten(call, obj, live, manager)
        except Refused as error:
            raise _explained(error, call.urn, manager) from error
        _, outputs = self._awaited(call, obj, fresh, manager)
        if manager != old_manager:
            self._relinquish(obj, old_manager)
        return outputs

    def _rewritten(self, call: Call, obj: Object, live: Object, manager: str) -> Object:
        if obj.get("kind") == "CustomResourceDefinition":
            obj = copy.deepcopy(obj)
            obj["metadata"]["resourceVersion"] = live["metadata"].get("resourceVersion")
            return self._cluster.replace(obj, manager)
        if not objects.is_patch(call.urn):
            live = self._take_over(live, manager)
        for path in call.ignore:
            _leave(obj, live, _paths.parse(path), manager)
        force = self._force(obj) or not live["metadata"].get("managedFields")
        return self._cluster.apply(obj, manager, force=force)

    def _take_over(self, live: Object, manager: str) -> Object:
        """Gives what this provider wrote without server-side apply to the object's manager."""
        fields = live["metadata"].get("managedFields") or []
        legacy = [
            entry
            for entry in fields
            if entry.get("manager") in _LEGACY and not entry.get("subresource")
        ]
        if not legacy:
            return live
        kept = [entry for entry in fields if entry not in legacy]
        own = next(
            (e for e in kept if e.get("manager") == manager and e.get("operation") == "Apply"), None
        )
        if own is None:
            own = {**legacy[-1], "manager": manager, "operation": "Apply", "fieldsV1": {}}
            kept.append(own)
        for entry in legacy:
            _union(own["fieldsV1"], entry.get("fieldsV1") or {})
        version = live["metadata"].get("resourceVersion")
        return self._cluster.patch(
            live,
            [
                {"op": "replace", "path": "/metadata/managedFields", "value": kept},
                {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
            ],
        )

    def _relinquish(self, obj: Object, manager: str) -> None:
        bare = {key: obj.get(key) for key in ("apiVersion", "kind")}
        meta = {key: obj["metadata"].get(key) for key in ("name", "namespace")}
        bare["metadata"] = {key: value for key, value in meta.items() if value}
        self._cluster.apply(bare, manager, force=False)

    def read(self, call: Call) -> ReadResult:
        """Looks at the object and at what it lacks.

        While the cluster does not answer (its machines may be what this run is to mend), nothing is
        known: state stays as it is.
        """
        try:
            return self._read(call)
        except Unreachable as error:
            self._warn(call.urn, f"{error}; it is taken to be as it was")
            return ReadResult(call.id, call.old_outputs, call.inputs)

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
        if reveal(self._inputs.get("deleteUnreachable")) in ("true", True):
            try:
                self._cluster.read(obj)
            except Unreachable:
                self._warn(call.urn, "the cluster does not answer; the object is forgotten")
                return
        manager = reveal(call.old_outputs.get(objects.FIELD_MANAGER))
        if objects.is_patch(call.urn):
            if manager:
                self._relinquish(obj, str(manager))
            return
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
    if kind.endswith("List"):
        raise UnsupportedError(f"A list as a resource ({kind})")


def _active_cluster(inputs: Properties) -> Any:
    document = parse_kubeconfig(inputs.get("kubeconfig")) if inputs.get("kubeconfig") else {}
    context = inputs.get("context") or document.get("current-context")
    contexts = {each["name"]: each.get("context") or {} for each in document.get("contexts") or ()}
    clusters = {each["name"]: each.get("cluster") for each in document.get("clusters") or ()}
    if context not in contexts:
        return None
    return clusters.get(inputs.get("cluster") or contexts[context].get("cluster"))


def _addressed(obj: Object, object_id: str) -> Object:
    namespace, _, name = object_id.rpartition("/")
    return {
        "apiVersion": obj.get("apiVersion"),
        "kind": obj.get("kind"),
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
    }


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


def _union(target: Object, source: Object) -> None:
    for key, value in source.items():
        _union(target.setdefault(key, {}), value)


def _leave(obj: Object, live: Object, path: list[str | int], manager: str) -> None:
    """Leaves an ignored field to whoever owns it; if that is nobody else, as it is."""
    parent: Any = obj
    value: Any = live
    for part in path[:-1]:
        parent = parent.get(part) if isinstance(parent, dict) else None
        value = value.get(part) if isinstance(value, dict) else None
    last = path[-1] if path else ""
    if not isinstance(parent, dict) or not isinstance(value, dict) or last not in value:
        return
    owners = {
        str(entry.get("manager"))
        for entry in live["metadata"].get("managedFields") or ()
        if _owns(entry.get("fieldsV1") or {}, path)
    }
    if owners and manager not in owners:
        parent.pop(last, None)
    else:
        parent[last] = value[last]


def _owns(fields: Object, path: list[str | int]) -> bool:
    for part in path:
        if f"f:{part}" not in fields:
            return False
        fields = fields[f"f:{part}"]
    return True


def _as_given(fresh: Object, inputs: Properties) -> Properties:
    """The refreshed inputs with the secrets that the old ones had."""
    result: Properties = copy.deepcopy(fresh)
    objects.mark_secrets(result, inputs)
    return result
