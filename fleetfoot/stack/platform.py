"""What keeps online and offline apart, declared: the objects of `sides` as resources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pulumi
import pulumi_kubernetes as kubernetes

from fleetfoot.stack import sides

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Platform"]

_admission, _flowcontrol = kubernetes.admissionregistration.v1, kubernetes.flowcontrol.v1
_KINDS: dict[str, Any] = {
    "ClusterRole": kubernetes.rbac.v1.ClusterRole,
    "FlowSchema": _flowcontrol.FlowSchema,
    "MutatingAdmissionPolicy": _admission.MutatingAdmissionPolicy,
    "MutatingAdmissionPolicyBinding": _admission.MutatingAdmissionPolicyBinding,
    "Namespace": kubernetes.core.v1.Namespace,
    "ResourceQuota": kubernetes.core.v1.ResourceQuota,
    "PriorityLevelConfiguration": _flowcontrol.PriorityLevelConfiguration,
    "RoleBinding": kubernetes.rbac.v1.RoleBinding,
    "ValidatingAdmissionPolicy": _admission.ValidatingAdmissionPolicy,
    "ValidatingAdmissionPolicyBinding": _admission.ValidatingAdmissionPolicyBinding,
}
# An object that names one of another kind, by its own name, is made after it.
_NEEDS = {
    "FlowSchema": "PriorityLevelConfiguration",
    "RoleBinding": "ClusterRole",
    "MutatingAdmissionPolicyBinding": "MutatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding": "ValidatingAdmissionPolicy",
}


class Platform(pulumi.ComponentResource):
    """Lanes, the offline namespaces, and what keeps its identities on their own endpoint."""

    def __init__(
        self,
        name: str,
        *,
        offline_url: str,
        offline_namespaces: Sequence[str],
        offline_objects: Mapping[str, int],
        provider: kubernetes.Provider,
        environment: pulumi.Resource,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Declare them.

        Args:
            name: Resource name.
            offline_url: Where pods of the offline side reach their apiservers; the audience of
                their tokens is this URL without its port.
            offline_namespaces: Where the offline side works.
            offline_objects: Resource to how many of its objects each of them may hold.
            provider: The cluster.
            environment: What the objects end with.
            opts: Options of the component.
        """
        super().__init__("fleetfoot:index:Platform", name, None, opts)
        self._child = pulumi.ResourceOptions(
            parent=self, provider=provider, deleted_with=environment
        )
        self._declare(sides.lanes(offline_namespaces))
        # The policies come first: no pod of the namespaces may be made without them.
        policies = self._declare(sides.admission(offline_url, offline_namespaces), "fleetfoot-")
        objects = sides.workplace(offline_namespaces, offline_objects)
        count = len(offline_namespaces)
        places = self._declare(objects[:count], after=policies)
        self._declare(objects[count:], "fleetfoot:", after=places)
        self.register_outputs({})

    def _declare(
        self,
        objects: list[dict[str, Any]],
        prefix: str = "",
        *,
        after: list[pulumi.Resource] | None = None,
    ) -> list[pulumi.Resource]:
        """Declare objects by their names without the prefix; return their resources.

        One that is in a namespace of the configuration's own has that in its name, too.
        """
        made: dict[tuple[str, str, str], pulumi.Resource] = {}
        for manifest in objects:
            kind, name = manifest["kind"], manifest["metadata"]["name"]
            namespace = manifest["metadata"].get("namespace", "")
            needed = made.get((_NEEDS.get(kind, ""), name, ""))
            own = f"-{namespace}" if namespace not in ("", sides.OFFLINE_NAMESPACE) else ""
            order = pulumi.ResourceOptions(
                depends_on=[*(after or []), *([needed] if needed else [])]
            )
            fields = {
                _snake(key): value
                for key, value in manifest.items()
                if key not in ("apiVersion", "kind")
            }
            made[kind, name, namespace] = _KINDS[kind](
                name.removeprefix(prefix) + own,
                **fields,
                opts=pulumi.ResourceOptions.merge(self._child, order),
            )
        return list(made.values())


def _snake(key: str) -> str:
    """Return an argument's name: roleRef is role_ref."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in key)
