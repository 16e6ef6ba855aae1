"""What keeps online and offline apart, as plain Kubernetes objects: lanes, admission and access.

Lanes are levels of API priority and fairness; each apiserver of every group obeys them. Why they
are so: docs/adr/0005-split-apiservers.md. Component Platform makes resources of the objects;
benches apply them to clusters of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "LANES",
    "OFFLINE_GROUP",
    "OFFLINE_NAMESPACE",
    "OFFLINE_OBJECTS",
    "OFFLINE_TIER",
    "ONLINE_AUDIENCE",
    "Lane",
    "admission",
    "lanes",
    "workplace",
]

#: Label of namespaces whose pods belong to the offline side; only those that the stack declares
#: have it.
OFFLINE_TIER = {"fleetfoot.dev/tier": "offline"}
#: The one namespace of the offline side, where the configuration names no others.
OFFLINE_NAMESPACE = "offline"
#: Objects that each namespace of the offline side may hold. They are in the etcd that online writes
#: to, and a lane bounds how fast they come, not how many stay. Pods are not among them: for each
#: that ends, all of the namespace's would be counted anew.
OFFLINE_OBJECTS = {
    "jobs.batch": 10_000,
    "cronjobs.batch": 500,
    "configmaps": 500,
    "services": 1_000,
    "persistentvolumeclaims": 1_000,
}
# Label of namespaces that the stack makes: apiservers take a second to read a changed policy.
_DECLARED = {"fleetfoot.dev/declared-by": "stack"}
#: Audience of ordinary tokens: the issuer (role kube_apiserver).
ONLINE_AUDIENCE = "https://kubernetes.default.svc.cluster.local"
#: Group of the identities of submitters, engines and agents of batch work.
OFFLINE_GROUP = "fleetfoot:offline"
_FLOWCONTROL = "flowcontrol.apiserver.k8s.io/v1"
_ADMISSION = "admissionregistration.k8s.io/v1"
_RBAC = "rbac.authorization.k8s.io"
# Classes of Kubernetes' own, before which pods of online would have to go.
_CRITICAL = ["system-cluster-critical", "system-node-critical"]
_ALL: dict[str, Any] = {
    "verbs": ["*"],
    "apiGroups": ["*"],
    "resources": ["*"],
    "namespaces": ["*"],
    "clusterScope": True,
}
_ANY_PATH: dict[str, Any] = {"verbs": ["*"], "nonResourceURLs": ["*"]}


@dataclass(frozen=True)
class Lane:
    """A priority level, and who goes there.

    Attributes:
        name: Level and schema are `fleetfoot-<name>`.
        shares: Part of an apiserver's seats, relative to the other levels'.
        precedence: Lower ones are asked first; Kubernetes' own begin at 400 for nodes and at 800
            for controllers.
        subjects: Users and groups.
        rules: Requests, as FlowSchema's resourceRules.
        paths: Whether requests to other paths belong here, too.
        lendable: Percentage of its seats that others may use while it does not.
        queues: Number of queues; one client that asks much fills few of them.
        queue_length: Requests that a queue holds; more are answered 429.
    """

    name: str
    shares: int
    precedence: int
    subjects: tuple[tuple[str, str], ...]
    rules: tuple[dict[str, Any], ...] = (_ALL,)
    paths: bool = False
    lendable: int = 0
    queues: int = 64
    queue_length: int = 50


LANES = (
    Lane(
        "offline",
        shares=20,
        precedence=300,
        # And service accounts of offline namespaces; see `lanes`.
        subjects=(("Group", OFFLINE_GROUP),),
        paths=True,
        lendable=50,
    ),
    Lane(
        "nodes",
        shares=50,
        precedence=310,
        subjects=(("Group", "system:nodes"),),
        rules=(
            {
                "verbs": ["get", "create", "update", "patch"],
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "namespaces": ["kube-node-lease"],
            },
            {
                "verbs": ["update", "patch"],
                "apiGroups": [""],
                "resources": ["nodes", "nodes/status"],
                "clusterScope": True,
            },
        ),
    ),
    Lane(
        "kubelets",
        shares=40,
        precedence=315,
        subjects=(("Group", "system:nodes"),),
        paths=True,
    ),
    Lane(
        "system",
        shares=50,
        precedence=320,
        subjects=(
            ("User", "system:kube-scheduler"),
            ("User", "system:kube-controller-manager"),
            ("User", "fleetfoot:coredns"),
            ("User", "fleetfoot:kubelet-csr-approver"),
            ("Group", "system:serviceaccounts:kube-system"),
        ),
        paths=True,
    ),
    Lane(
        "bulk",
        shares=10,
        precedence=1000,
        subjects=(("Group", "system:authenticated"),),
        # A watch may begin with all that a list has; without that, it needs its seat for a moment.
        rules=(
            {
                "verbs": ["list", "watch"],
                "apiGroups": ["*"],
                "resources": ["*"],
                "clusterScope": True,
            },
        ),
        queues=16,
    ),
    Lane(
        "online",
        shares=100,
        precedence=1010,
        subjects=(("Group", "system:authenticated"),),
        paths=True,
    ),
)
"""Lanes in the order in which they are asked."""


def lanes(namespaces: Iterable[str] = (OFFLINE_NAMESPACE,)) -> list[dict[str, Any]]:
    """Return levels and schemas of the lanes; each schema comes after its level.

    Args:
        namespaces: Those of the offline side. Schemas know no labels, and groups of apiservers
            share them.
    """
    accounts = tuple(("Group", f"system:serviceaccounts:{name}") for name in namespaces)
    return [
        manifest
        for lane in LANES
        for manifest in _lane(
            replace(lane, subjects=lane.subjects + accounts) if lane.name == "offline" else lane
        )
    ]


def _lane(lane: Lane) -> list[dict[str, Any]]:
    name = f"fleetfoot-{lane.name}"
    queuing = {
        "queues": lane.queues,
        "handSize": min(8, lane.queues // 2),
        "queueLengthLimit": lane.queue_length,
    }
    bounds = {
        "type": "Limited",
        "limited": {
            "nominalConcurrencyShares": lane.shares,
            "lendablePercent": lane.lendable,
            "limitResponse": {"type": "Queue", "queuing": queuing},
        },
    }
    rule = {
        "subjects": [
            {"kind": kind, kind.lower(): {"name": subject}} for kind, subject in lane.subjects
        ],
        "resourceRules": list(lane.rules),
        "nonResourceRules": [_ANY_PATH] if lane.paths else [],
    }
    schema = {
        "priorityLevelConfiguration": {"name": name},
        "matchingPrecedence": lane.precedence,
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [rule],
    }
    return [
        _object(_FLOWCONTROL, "PriorityLevelConfiguration", name, spec=bounds),
        _object(_FLOWCONTROL, "FlowSchema", name, spec=schema),
    ]


def admission(
    url: str,
    namespaces: Sequence[str] = (OFFLINE_NAMESPACE,),
    online_audiences: Sequence[str] = (ONLINE_AUDIENCE,),
) -> list[dict[str, Any]]:
    """Return policies and their bindings, each binding after its policy.

    Pods get the offline address and audience; no token of theirs is valid elsewhere.

    Args:
        url: Where pods of the offline side reach their apiservers; the audience of their tokens is
            this URL without its port.
        namespaces: Those of the offline side; others may not look as if they were.
        online_audiences: Of tokens that online accepts; offline's may be for anybody else.
    """
    host, _, port = url.removeprefix("https://").rpartition(":")
    audience = f"https://{host}"
    token = (
        "object.spec.?volumes.orValue([]).transformList(i, v,"
        " v.name.startsWith('kube-api-access-')"
        " && v.?projected.sources[?0].serviceAccountToken.hasValue(),"
        " JSONPatch{op: 'add', path: '/spec/volumes/' + string(i)"
        f" + '/projected/sources/0/serviceAccountToken/audience', value: '{audience}'}})"
    )
    mutations = {
        "matchConstraints": _written("pods", "CREATE"),
        "failurePolicy": "Fail",
        "reinvocationPolicy": "IfNeeded",
        "mutations": [
            {
                "patchType": "ApplyConfiguration",
                "applyConfiguration": {"expression": _address_of_containers(host, port)},
            },
            {"patchType": "JSONPatch", "jsonPatch": {"expression": token}},
        ],
    }
    name = "fleetfoot-offline-pods"
    return [
        _object(_ADMISSION, "MutatingAdmissionPolicy", name, spec=mutations),
        _object(_ADMISSION, "MutatingAdmissionPolicyBinding", name, spec=_bound(name)),
        *_refusal(
            "fleetfoot-offline-priorities",
            _written("pods", "CREATE"),
            f"!(object.spec.?priorityClassName.orValue('') in [{_quoted(_CRITICAL)}])",
            "pods of online would have to go before one of an offline namespace that has this"
            " priority class; use another, or none",
        ),
        *_refusal(
            "fleetfoot-offline-tokens",
            _written("serviceaccounts/token", "CREATE"),
            f"!object.spec.audiences.exists(a, a in [{_quoted(online_audiences)}])",
            "a token of an offline namespace must not be valid at the online apiservers; ask for"
            f" the audience {audience}, or at the offline apiservers",
        ),
        *_refusal(
            "fleetfoot-offline-secrets",
            _written("secrets", "CREATE"),
            "object.?type.orValue('') != 'kubernetes.io/service-account-token'",
            "a token in a Secret has no audience, so it would be valid at the online apiservers;"
            " use a projected token",
        ),
        *_refusal(
            "fleetfoot-offline-services",
            _written("services", "CREATE", "UPDATE"),
            "object.spec.?type.orValue('ClusterIP') == 'ClusterIP'"
            " && size(object.spec.?externalIPs.orValue([])) == 0",
            "a Service of an offline namespace must be of type ClusterIP and without externalIPs:"
            " nodes would send it what is meant for others' addresses and ports; ask an operator"
            " for a front end",
        ),
        *_refusal(
            "fleetfoot-offline-namespaces",
            _written("namespaces", "CREATE", "UPDATE"),
            _labelled_as_listed(namespaces),
            "the label fleetfoot.dev/tier=offline belongs to the namespaces of"
            " fleetfoot:offline.namespaces and to no others, for lanes and access go by that list;"
            " change it and run `make up`, or `fleetfoot sides --namespace`",
            everywhere=True,
        ),
    ]


def _labelled_as_listed(namespaces: Sequence[str]) -> str:
    """Return CEL that is true for a namespace which is labelled and listed, or neither."""

    def has(label: dict[str, str]) -> str:
        ((key, value),) = label.items()
        return f"object.metadata.?labels[?'{key}'].orValue('') == '{value}'"

    listed = f"object.metadata.?name.orValue('') in [{_quoted(namespaces)}]"
    made = f"request.operation == 'CREATE' && {has(_DECLARED)}"
    return f"({has(OFFLINE_TIER)}) ? ({listed} || ({made})) : !({listed})"


def _quoted(words: Iterable[str]) -> str:
    """Return words as CEL writes the elements of a list."""
    return ", ".join(f"'{word}'" for word in words)


def _refusal(
    name: str,
    constraints: dict[str, Any],
    expression: str,
    message: str,
    *,
    everywhere: bool = False,
) -> list[dict[str, Any]]:
    rules = {
        "matchConstraints": constraints,
        "failurePolicy": "Fail",
        "validations": [{"expression": expression, "message": message}],
    }
    bound = {**_bound(name), "validationActions": ["Deny"]}
    if everywhere:
        del bound["matchResources"]
    return [
        _object(_ADMISSION, "ValidatingAdmissionPolicy", name, spec=rules),
        _object(_ADMISSION, "ValidatingAdmissionPolicyBinding", name, spec=bound),
    ]


def workplace(
    namespaces: Iterable[str] = (OFFLINE_NAMESPACE,),
    objects: Mapping[str, int] = OFFLINE_OBJECTS,
) -> list[dict[str, Any]]:
    """Return where the offline side works, and what its submitters may do and hold there.

    Args:
        namespaces: Those of the offline side; they come first.
        objects: Resource to how many of its objects each namespace may hold.
    """
    every = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
    name = "fleetfoot:offline-submitter"
    rules = [
        {
            "apiGroups": [""],
            "resources": ["configmaps", "persistentvolumeclaims", "pods", "services"],
            "verbs": every,
        },
        {"apiGroups": ["batch"], "resources": ["cronjobs", "jobs"], "verbs": every},
        {
            "apiGroups": [""],
            "resources": ["events", "pods/log", "pods/status"],
            "verbs": ["get", "list", "watch"],
        },
    ]
    role = _object(f"{_RBAC}/v1", "ClusterRole", name, rules=rules)
    held = {f"count/{resource}": str(count) for resource, count in objects.items()}
    places: list[dict[str, Any]] = []
    bindings: list[dict[str, Any]] = []
    for namespace in namespaces:
        place = _object("v1", "Namespace", namespace)
        place["metadata"]["labels"] = {
            **OFFLINE_TIER,
            **_DECLARED,
            "pod-security.kubernetes.io/enforce": "baseline",
        }
        places.append(place)
        binding = _object(
            f"{_RBAC}/v1",
            "RoleBinding",
            name,
            roleRef={"apiGroup": _RBAC, "kind": "ClusterRole", "name": name},
            subjects=[{"apiGroup": _RBAC, "kind": "Group", "name": OFFLINE_GROUP}],
        )
        quota = _object("v1", "ResourceQuota", "offline-objects", spec={"hard": held})
        for each in (binding, quota):
            each["metadata"]["namespace"] = namespace
            bindings.append(each)
    return [*places, role, *bindings]


def _object(api_version: str, kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **fields}


def _bound(policy: str) -> dict[str, Any]:
    """What a binding says: the policy holds in offline namespaces."""
    return {
        "policyName": policy,
        "matchResources": {"namespaceSelector": {"matchLabels": OFFLINE_TIER}},
    }


def _written(resource: str, *operations: str) -> dict[str, Any]:
    """What a policy looks at: operations on a resource of the core group."""
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": list(operations),
        "resources": [resource],
    }
    return {"resourceRules": [rule]}


def _address_of_containers(host: str, port: str) -> str:
    """Return CEL that gives every container the address that client libraries read first."""

    def env(field: str) -> str:
        pairs = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
        items = ", ".join(
            f"Object.spec.{field}.env{{name: '{name}', value: '{value}'}}"
            for name, value in pairs.items()
        )
        return (
            f"object.spec.?{field}.orValue([]).map(c,"
            f" Object.spec.{field}{{name: c.name, env: [{items}]}})"
        )

    fields = ", ".join(f"{field}: {env(field)}" for field in ("containers", "initContainers"))
    return f"Object{{spec: Object.spec{{{fields}}}}}"
