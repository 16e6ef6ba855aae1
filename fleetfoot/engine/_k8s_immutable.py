"""Which properties of which kinds cannot change in place, as pulumi-kubernetes has it."""

from __future__ import annotations

from typing import Final


def _under(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names.split())


_CONTAINER: Final = """
    args command env image imagePullPolicy lifecycle livenessProbe ports readinessProbe
    resources securityContext stdin stdinOnce terminationMessagePath terminationMessagePolicy
    tty volumeDevices volumeMounts workingDir
"""
_POD: Final = """
    affinity automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks hostAliases
    hostIPC hostNetwork hostPID hostname imagePullSecrets nodeName nodeSelector overhead
    preemptionPolicy priority priorityClassName readinessGates restartPolicy runtimeClassName
    schedulerName securityContext serviceAccount serviceAccountName shareProcessNamespace
    subdomain terminationGracePeriodSeconds volumes
"""
_VOLUME: Final = """
    awsElasticBlockStore azureDisk azureFile cephfs cinder csi fc flexVolume flocker
    gcePersistentDisk glusterfs hostPath iscsi local nfs photonPersistentDisk portworxVolume
    quobyte rbd scaleIO storageos vsphereVolume
"""

# (group, version, kind) to paths.
IMMUTABLE: Final[dict[tuple[str, str, str], tuple[str, ...]]] = {
    ("apps", "v1", "DaemonSet"): ("spec.selector",),
    ("apps", "v1", "Deployment"): ("spec.selector",),
    ("apps", "v1", "StatefulSet"): (
        "spec.podManagementPolicy",
        "spec.revisionHistoryLimit",
        "spec.selector",
        "spec.serviceName",
        "spec.volumeClaimTemplates",
    ),
    ("batch", "v1", "Job"): (
        "spec.completions",
        "spec.parallelism",
        "spec.selector",
        "spec.template",
    ),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"): ("roleRef",),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding"): ("roleRef",),
    ("storage.k8s.io", "v1", "StorageClass"): ("parameters", "provisioner"),
    ("", "v1", "ConfigMap"): ("binaryData", "data"),
    ("", "v1", "PersistentVolume"): _under("spec", _VOLUME),
    ("", "v1", "PersistentVolumeClaim"): (
        "spec.accessModes",
        "spec.selector",
        "spec.storageClassName",
        "spec.volumeName",
    ),
    ("", "v1", "Pod"): (
        *_under("spec", _POD),
        *_under("spec.containers[*]", _CONTAINER),
        *_under("spec.initContainers[*]", _CONTAINER),
    ),
    ("", "v1", "ResourceQuota"): ("spec.scopes",),
    ("", "v1", "Secret"): ("type", "stringData", "data"),
    ("", "v1", "Service"): ("spec.clusterIP",),
}
