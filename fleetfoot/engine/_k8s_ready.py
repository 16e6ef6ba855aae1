"""When a Kubernetes object counts as ready: the await rules of pulumi-kubernetes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

Object = dict[str, Any]


class Failed(Exception):  # noqa: N818
    """The object will not become ready by waiting."""


class Lookup(Protocol):
    """What rules may look at besides the object."""

    def get(self, api_version: str, kind: str, name: str, namespace: str) -> Object | None:
        """An object, or None."""

    def select(self, api_version: str, kind: str, namespace: str, selector: str) -> list[Object]:
        """The objects that a label selector names."""


Rule = Callable[[Object, Lookup], str]


def ready(obj: Object, lookup: Lookup) -> str:
    """What the object still lacks, one sentence, or "" when it is ready.

    Raises:
        Failed: It will never be.
    """
    group = str(obj.get("apiVersion", "")).rpartition("/")[0]
    rule = _RULES.get((group, str(obj.get("kind"))))
    return rule(obj, lookup) if rule is not None else ""


def _status(obj: Object) -> Object:
    return obj.get("status") or {}


def _condition(obj: Object, kind: str) -> Object:
    for condition in _status(obj).get("conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}


def _holds(obj: Object, kind: str) -> bool:
    return _condition(obj, kind).get("status") == "True"


def _stale(obj: Object) -> bool:
    return int(_status(obj).get("observedGeneration", 0)) < int(
        obj["metadata"].get("generation", 0)
    )


def _deployment(obj: Object, lookup: Lookup) -> str:
    if _stale(obj):
        return "The controller has not seen the Deployment yet"
    progress = _condition(obj, "Progressing")
    if progress.get("reason") == "ProgressDeadlineExceeded":
        raise Failed(f"Deployment exceeded its progress deadline: {progress.get('message', '')}")
    wanted = int(obj["spec"].get("replicas", 1))
    status = _status(obj)
    updated, available = (int(status.get(k, 0)) for k in ("updatedReplicas", "availableReplicas"))
    total = int(status.get("replicas", 0))
    if updated < wanted:
        return f"{updated} of {wanted} Pods are of the new revision{_pods(obj, lookup)}"
    if total > updated:
        return f"{total - updated} old Pods are still to go"
    if available < wanted:
        return f"{available} of {wanted} Pods are available{_pods(obj, lookup)}"
    if not _holds(obj, "Available"):
        return "Minimum number of Pods to consider the application live was not attained"
    return ""


def _stateful_set(obj: Object, lookup: Lookup) -> str:
    if _stale(obj):
        return "The controller has not seen the StatefulSet yet"
    wanted, status = int(obj["spec"].get("replicas", 1)), _status(obj)
    if int(status.get("readyReplicas", 0)) < wanted:
        return f"{status.get('readyReplicas', 0)} of {wanted} Pods are ready{_pods(obj, lookup)}"
    strategy = (obj["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate")
    if strategy == "RollingUpdate" and status.get("currentRevision") != status.get(
        "updateRevision"
    ):
        return "Pods of the old revision are still there"
    return ""


def _daemon_set(obj: Object, lookup: Lookup) -> str:
    if _stale(obj):
        return "The controller has not seen the DaemonSet yet"
    status = _status(obj)
    wanted = int(status.get("desiredNumberScheduled", 0))
    if (obj["spec"].get("updateStrategy") or {}).get("type") == "OnDelete":
        return ""
    for key in ("updatedNumberScheduled", "numberAvailable", "numberReady"):
        if int(status.get(key, 0)) < wanted:
            return f"{status.get(key, 0)} of {wanted} nodes have it{_pods(obj, lookup)}"
    return ""


def _pods(obj: Object, lookup: Lookup) -> str:
    """Why the Pods of a controller are not ready, as far as they say."""
    labels = (obj["spec"].get("selector") or {}).get("matchLabels") or {}
    if not labels:
        return ""
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    reasons = []
    for pod in lookup.select("v1", "Pod", obj["metadata"].get("namespace", ""), selector):
        if why := _pod_trouble(pod):
            reasons.append(f"{pod['metadata']['name']}: {why}")
    return " (" + "; ".join(reasons) + ")" if reasons else ""


def _pod_trouble(pod: Object) -> str:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return str(scheduled.get("message", "not scheduled"))
    for container in [
        *(_status(pod).get("initContainerStatuses") or ()),
        *(_status(pod).get("containerStatuses") or ()),
    ]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{container['name']} {waiting['reason']} {waiting.get('message', '')}".strip()
    return ""


def _pod(obj: Object, _lookup: Lookup) -> str:
    phase = _status(obj).get("phase")
    if phase == "Failed":
        raise Failed(f"Pod failed: {_status(obj).get('message', _status(obj).get('reason', ''))}")
    if phase == "Succeeded" or _holds(obj, "Ready"):
        return ""
    return f"Pod is {phase or 'Pending'} {_pod_trouble(obj)}".strip()


def _job(obj: Object, _lookup: Lookup) -> str:
    failed = _condition(obj, "Failed")
    if failed.get("status") == "True":
        raise Failed(f"Job failed: {failed.get('reason', '')} {failed.get('message', '')}".strip())
    if _holds(obj, "Complete") or obj["spec"].get("suspend"):
        return ""
    return f"Job has {_status(obj).get('succeeded', 0)} successful Pods"


def _service(obj: Object, lookup: Lookup) -> str:
    spec = obj["spec"]
    if spec.get("type") == "LoadBalancer" and not (_status(obj).get("loadBalancer") or {}).get(
        "ingress"
    ):
        return "Service was not allocated an IP address; does your cloud provider support this?"
    headless = spec.get("clusterIP") == "None"
    if headless or spec.get("type") == "ExternalName" or not spec.get("selector"):
        return ""
    meta = obj["metadata"]
    slices = lookup.select(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        meta.get("namespace", ""),
        f"kubernetes.io/service-name={meta['name']}",
    )
    endpoints = [each for item in slices for each in item.get("endpoints") or ()]
    if any((each.get("conditions") or {}).get("ready", True) for each in endpoints):
        return ""
    return (
        "Service does not target any Pods. Selected Pods may not be ready, or "
        "field '.spec.selector' may not match labels on any Pods"
    )


def _ingress(obj: Object, _lookup: Lookup) -> str:
    if (_status(obj).get("loadBalancer") or {}).get("ingress"):
        return ""
    return "Ingress has no address; is a controller for its class running?"


def _volume(obj: Object, _lookup: Lookup) -> str:
    phase = _status(obj).get("phase")
    return "" if phase in ("Available", "Bound") else f"PersistentVolume is {phase or 'Pending'}"


def _claim(obj: Object, lookup: Lookup) -> str:
    phase = _status(obj).get("phase")
    if phase == "Bound":
        return ""
    name = obj["spec"].get("storageClassName")
    storage = lookup.get("storage.k8s.io/v1", "StorageClass", name, "") if name else None
    if storage and storage.get("volumeBindingMode") == "WaitForFirstConsumer":
        return ""
    return f"PersistentVolumeClaim is {phase or 'Pending'}"


def _replication_controller(obj: Object, lookup: Lookup) -> str:
    wanted, has = obj["spec"].get("replicas", 1), _status(obj).get("availableReplicas", 0)
    return "" if has == wanted else f"{has} of {wanted} Pods are available{_pods(obj, lookup)}"


def _quota(obj: Object, _lookup: Lookup) -> str:
    if obj["spec"].get("hard") == _status(obj).get("hard"):
        return ""
    return "The controller has not taken the ResourceQuota up yet"


def _definition(obj: Object, _lookup: Lookup) -> str:
    rejected = _condition(obj, "NamesAccepted")
    if rejected.get("status") == "False":
        raise Failed(f"The names are taken: {rejected.get('message', '')}")
    return "" if _holds(obj, "Established") else "CustomResourceDefinition is not established"


_RULES: Final[dict[tuple[str, str], Rule]] = {
    ("apps", "Deployment"): _deployment,
    ("apps", "StatefulSet"): _stateful_set,
    ("apps", "DaemonSet"): _daemon_set,
    ("batch", "Job"): _job,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _definition,
    ("networking.k8s.io", "Ingress"): _ingress,
    ("", "Pod"): _pod,
    ("", "Service"): _service,
    ("", "PersistentVolume"): _volume,
    ("", "PersistentVolumeClaim"): _claim,
    ("", "ReplicationController"): _replication_controller,
    ("", "ResourceQuota"): _quota,
}
