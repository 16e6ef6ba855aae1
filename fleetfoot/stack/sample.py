"""The sample service as Kubernetes objects: namespace, Deployment, Service on every worker."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from fleetfoot.stack.inventory import SAMPLE_NODE_PORT

__all__ = ["Sample"]

_PORT = 8080
_NAME = "dictionary"


class Sample(pulumi.ComponentResource):
    """A dictionary over HTTP, answering from WordNet in SQLite.

    The way from the host: load balancer (control machine) -> NodePort on every worker -> pod.

    Attributes:
        name: Service name.
    """

    def __init__(
        self,
        name: str,
        *,
        image: pulumi.Input[str],
        replicas: int,
        provider: kubernetes.Provider,
        environment: pulumi.Resource,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("fleetfoot:index:Sample", name, None, opts)
        child = pulumi.ResourceOptions(parent=self, provider=provider, deleted_with=environment)
        namespace = kubernetes.core.v1.Namespace(
            "sample",
            metadata={
                "name": "sample",
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            },
            opts=child,
        )
        labels = {"app.kubernetes.io/name": _NAME}
        metadata: Any = {"name": _NAME, "namespace": namespace.metadata.name, "labels": labels}
        workload: Any = {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": _pod(image, labels)},
        }
        exposed: Any = {
            "type": "NodePort",
            "selector": labels,
            "ports": [{"port": 80, "targetPort": _PORT, "nodePort": SAMPLE_NODE_PORT}],
        }
        budget: Any = {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
        deployment = kubernetes.apps.v1.Deployment(
            _NAME, metadata=metadata, spec=workload, opts=child
        )
        # The Service comes last: what waits for it finds pods behind it.
        kubernetes.core.v1.Service(
            _NAME,
            metadata=metadata,
            spec=exposed,
            opts=pulumi.ResourceOptions.merge(
                child, pulumi.ResourceOptions(depends_on=[deployment])
            ),
        )
        kubernetes.policy.v1.PodDisruptionBudget(_NAME, metadata=metadata, spec=budget, opts=child)
        self.register_outputs({})


def _pod(image: pulumi.Input[str], labels: dict[str, str]) -> dict[str, Any]:
    probe: Any = {"httpGet": {"path": "/healthz", "port": _PORT}, "timeoutSeconds": 5}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels},
            }
        ],
        "containers": [
            {
                "name": _NAME,
                "image": image,
                "ports": [{"containerPort": _PORT}],
                "readinessProbe": {**probe, "periodSeconds": 2},
                "livenessProbe": {**probe, "periodSeconds": 30, "initialDelaySeconds": 30},
                "resources": {
                    "requests": {"cpu": "50m", "memory": "48Mi"},
                    "limits": {"memory": "128Mi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    }
