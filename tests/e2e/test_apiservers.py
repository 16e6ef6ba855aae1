"""Online and offline apart: who is known where, what pods are given, which lane a request takes."""

from __future__ import annotations

import base64
import json
import re
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fleetfoot.machines.cgroups import Cgroup
from fleetfoot.stack.inventory import API_PORTS
from tests.e2e.stacks import Stack, ask

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

NAMESPACE = "offline"
READS = ["/readyz", "/version", f"/api/v1/namespaces/{NAMESPACE}/pods", "/api/v1/nodes"]
#: What the pod runs: its own token, at the address that it was given and at online's.
PROBE = """
import json, os, ssl, urllib.error, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
context = ssl.create_default_context(cafile=folder + "ca.crt")
def ask(address):
    token = {"Authorization": "Bearer " + open(folder + "token").read()}
    request = urllib.request.Request("https://" + address + "/version", headers=token)
    try:
        return urllib.request.urlopen(request, context=context, timeout=30).status
    except urllib.error.HTTPError as refused:
        return refused.code
given = os.environ["KUBERNETES_SERVICE_HOST"] + ":" + os.environ["KUBERNETES_SERVICE_PORT"]
print(json.dumps({"address": given, "given": ask(given), "online": ask(ONLINE)}))
"""


def test_both_groups_are_ready(environment: Stack) -> None:
    groups = {row["group"]: row for row in environment.status()["apiservers"]}
    assert set(groups) == {"online", "offline"}
    assert all(row["ready"] for row in groups.values())
    assert len({row["endpoint"] for row in groups.values()}) == 2


def test_what_cannot_work_is_refused_before_any_machine_is_changed(environment: Stack) -> None:
    within_pods = environment.config["fleetfoot:network"]["pods"].replace("/16", "/20")
    with pytest.raises(AssertionError, match="overlaps") as told:
        environment.play("site.yml", "-e", f"fleetfoot_service_cidr={within_pods}")
    counts = re.findall(r"changed=(\d+)", str(told.value))
    assert counts
    assert set(counts) == {"0"}


def budget(stack: Stack, group: str) -> tuple[float, int]:
    """Return the CPUs and the bytes that a group has in the configuration; 0 is no bound."""
    limits = stack.config["fleetfoot:apiservers"][group]
    size = re.fullmatch(r"(\d+)([MG])iB", limits["memory"])
    assert size
    return limits.get("cpus", 0), int(size[1]) << {"M": 20, "G": 30}[size[2]]


def test_the_offline_apiserver_has_its_budget(environment: Stack) -> None:
    machine = Cgroup(environment.name, "control-1")
    unit = "kube-apiserver@offline"
    cpus, size = budget(environment, "offline")
    if machine.unified:
        within = f"/sys/fs/cgroup$(systemctl show --property=ControlGroup --value {unit})"
        files = f"cd {within}; cat cpu.max cpu.idle memory.max"
        said = environment.ssh("control-1", files).split()
        assert said == [str(int(cpus * 100_000)), "100000", "1", str(size)]
        return
    for folder in machine.folders:
        below = folder / "kube-apiserver-offline"
        arguments = [
            Path(f"/proc/{pid}/cmdline").read_text()
            for pid in (below / "cgroup.procs").read_text().split()
        ]
        assert len(arguments) == 1
        assert "offline" in arguments[0]
    cpu, memory = (folder / "kube-apiserver-offline" for folder in machine.folders)
    assert (cpu / "cpu.cfs_quota_us").read_text().strip() == str(int(cpus * 100_000))
    assert (cpu / "cpu.idle").read_text().strip() == "1"
    assert (memory / "memory.limit_in_bytes").read_text().strip() == str(size)


def test_the_online_apiserver_has_one_of_its_own(environment: Stack) -> None:
    machine = Cgroup(environment.name, "control-1")
    _, wanted = budget(environment, "online")
    if machine.unified:
        group = "$(systemctl show --property=ControlGroup --value kube-apiserver@online)"
        ask = f"cat /sys/fs/cgroup{group}/memory.max"
        assert int(environment.ssh("control-1", ask)) == wanted
        return
    _, memory = (folder / "kube-apiserver-online" for folder in machine.folders)
    (process,) = (memory / "cgroup.procs").read_text().split()
    assert "online" in Path(f"/proc/{process}/cmdline").read_text()
    assert int((memory / "memory.limit_in_bytes").read_text()) == wanted


def flags(stack: Stack, group: str) -> dict[str, str]:
    """Return the flags with which a group's apiserver runs."""
    pid = f"$(systemctl show -P MainPID kube-apiserver@{group})"
    words = stack.ssh("control-1", f"tr '\\0' '\\n' < /proc/{pid}/cmdline").splitlines()
    told = [word.removeprefix("--").partition("=") for word in words if word.startswith("--")]
    return {name: value for name, _, value in told}


@pytest.mark.parametrize("group", API_PORTS)
def test_a_server_runs_with_its_groups_limits(environment: Stack, group: str) -> None:
    every = environment.paths.control_plane()
    assert every
    wanted = every["children"]["kube_apiserver"]["children"][f"apiserver_{group}"]["vars"]
    found = flags(environment, group)
    assert int(found["max-requests-inflight"]) == wanted["kube_apiserver_max_requests"]
    mutating = int(found["max-mutating-requests-inflight"])
    assert mutating == wanted["kube_apiserver_max_mutating_requests"]
    assert float(found["goaway-chance"]) == wanted["kube_apiserver_goaway_chance"]
    assert found["audit-policy-file"].endswith(f"-{group}.yaml")


@pytest.mark.parametrize("path", READS)
def test_offline_credentials_are_unknown_at_online(environment: Stack, path: str) -> None:
    status, _ = ask(environment, "online", path, identity="offline")
    assert status == HTTPStatus.UNAUTHORIZED


def test_each_group_knows_its_own(environment: Stack) -> None:
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    assert ask(environment, "offline", pods, identity="offline")[0] == HTTPStatus.OK
    assert ask(environment, "offline", pods, identity="operator")[0] == HTTPStatus.UNAUTHORIZED
    assert ask(environment, "online", pods, identity="operator")[0] == HTTPStatus.OK


def test_submitters_may_do_nothing_elsewhere(environment: Stack) -> None:
    path = "/api/v1/namespaces/default/pods"
    assert ask(environment, "offline", path, identity="offline")[0] == HTTPStatus.FORBIDDEN


def test_the_service_kubernetes_is_online(environment: Stack) -> None:
    slices = environment.get("endpointslices", "kubernetes", "--namespace=default")
    assert [port["port"] for port in slices["ports"]] == [7443]


@pytest.fixture(scope="module")
def pod(environment: Stack) -> Iterator[dict[str, Any]]:
    """A running pod of the offline namespace, made by a submitter at the offline apiservers."""
    image = environment.get("pods", "--namespace=sample")["items"][0]["spec"]["containers"][0]
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "namespace": NAMESPACE},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "initContainers": [{**_container(image["image"]), "name": "first"}],
            "containers": [
                {
                    **_container(image["image"]),
                    "command": ["python3", "-c", "import time; time.sleep(1e6)"],
                }
            ],
        },
    }
    offline = ["kubectl", "--identity=offline", "--", f"--namespace={NAMESPACE}"]
    path = environment.paths.root / "probe.json"
    path.write_text(json.dumps(manifest))
    environment.fleetfoot(*offline, "create", "-f", str(path))
    try:
        environment.fleetfoot(
            *offline, "wait", "--for=condition=Ready", "pod/probe", "--timeout=300s"
        )
        yield environment.get("pods", "probe", f"--namespace={NAMESPACE}")
    finally:
        environment.fleetfoot(*offline, "delete", "pod", "probe", "--wait=false")
        path.unlink()


def _container(image: str) -> dict[str, Any]:
    return {"name": "probe", "image": image, "command": ["python3", "-c", "pass"]}


def test_a_pod_is_given_the_offline_address_and_audience(pod: dict[str, Any]) -> None:
    for container in (*pod["spec"]["containers"], *pod["spec"]["initContainers"]):
        given = {pair["name"]: pair["value"] for pair in container["env"]}
        assert given["KUBERNETES_SERVICE_HOST"] == "api-offline.e2e.fleetfoot.internal"
        assert given["KUBERNETES_SERVICE_PORT"] == "6444"
    sources = [
        source["serviceAccountToken"]["audience"]
        for volume in pod["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        if "serviceAccountToken" in source
    ]
    assert sources == ["https://api-offline.e2e.fleetfoot.internal"]


def test_its_token_is_known_at_offline_only(environment: Stack, pod: dict[str, Any]) -> None:
    online = "kubernetes.default.svc.cluster.local:443"
    program = PROBE.replace("ONLINE", repr(online))
    where = [f"--namespace={pod['metadata']['namespace']}", pod["metadata"]["name"]]
    where += ["--container=probe"]
    said = json.loads(environment.kubectl("exec", *where, "--", "python3", "-c", program))
    assert said["address"] == "api-offline.e2e.fleetfoot.internal:6444"
    assert (said["given"], said["online"]) == (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED)


def test_no_token_of_an_offline_namespace_is_valid_at_online(
    environment: Stack, tmp_path: Path
) -> None:
    """Neither by default, nor by asking for it, nor in a Secret."""
    create = ["kubectl", "--", f"--namespace={NAMESPACE}", "create"]
    for audience in ([], ["--audience=https://kubernetes.default.svc.cluster.local"]):
        refused = environment.fleetfoot(*create, "token", "default", *audience, check=False)
        assert refused.returncode != 0
        assert "must not be valid at the online apiservers" in refused.stdout
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "old",
            "annotations": {"kubernetes.io/service-account.name": "default"},
        },
        "type": "kubernetes.io/service-account-token",
    }
    (tmp_path / "secret.json").write_text(json.dumps(secret))
    refused = environment.fleetfoot(*create, "-f", str(tmp_path / "secret.json"), check=False)
    assert "has no audience" in refused.stdout
    audience = "https://api-offline.e2e.fleetfoot.internal"
    token = environment.fleetfoot(*create, "token", "default", f"--audience={audience}").stdout
    payload = token.strip().split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["aud"] == [audience]
    for group, status in {"offline": HTTPStatus.OK, "online": HTTPStatus.UNAUTHORIZED}.items():
        assert ask(environment, group, "/version", token=token.strip())[0] == status


@pytest.mark.parametrize(
    "change",
    [("sample", "fleetfoot.dev/tier=offline"), (NAMESPACE, "fleetfoot.dev/tier-")],
    ids=["put-on", "taken-off"],
)
def test_the_label_of_offline_namespaces_stays_where_it_is(
    environment: Stack, change: tuple[str, str]
) -> None:
    label = ["kubectl", "--", "label", "--dry-run=server", "namespace", *change]
    refused = environment.fleetfoot(*label, check=False)
    assert refused.returncode != 0
    assert "fleetfoot:offline.namespaces" in refused.stdout


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"type": "NodePort"}, "must be of type ClusterIP"),
        ({"type": "LoadBalancer"}, "must be of type ClusterIP"),
        ({"type": "ExternalName", "externalName": "x.internal"}, "must be of type ClusterIP"),
        # Refused to everybody, before the policy is asked.
        ({"externalIPs": ["ADDRESS"]}, "external IPs is denied"),
        ({}, "created"),
    ],
    ids=["node-port", "load-balancer", "external-name", "external-ips", "ordinary"],
)
def test_submitters_divert_no_traffic(
    environment: Stack, tmp_path: Path, spec: dict[str, Any], says: str
) -> None:
    address = environment.machine("control-1")["address"]
    spec = {**spec, "ports": [{"port": API_PORTS["online"]}], "selector": {"app": "mine"}}
    if "externalIPs" in spec:
        spec["externalIPs"] = [address]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "mine"}, "spec": spec}
    said = submitted(environment, tmp_path, service)
    environment.kubectl(
        "delete", "service", f"--namespace={NAMESPACE}", "mine", "--ignore-not-found"
    )
    assert says in said
    assert (" created" in said) == (says == "created")


def submitted(stack: Stack, folder: Path, *objects: dict[str, Any]) -> str:
    """Let an offline submitter make objects; return what it was told."""
    file = folder / "objects.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    argv = ("kubectl", "--identity=offline", "--", f"--namespace={NAMESPACE}", "create", "-f")
    return str(stack.fleetfoot(*argv, str(file), check=False).stdout)


def test_submitters_fill_no_database(environment: Stack, tmp_path: Path) -> None:
    """What they write is in the etcd that online needs for its own writes."""
    most = environment.config["fleetfoot:offline"]["objects"]["configmaps"]
    many = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"filler-{number}"}}
        for number in range(most + 5)
    ]
    said = submitted(environment, tmp_path, *many)
    made = said.count(" created")
    names = [f"filler-{number}" for number in range(made)]
    environment.kubectl("delete", "configmap", f"--namespace={NAMESPACE}", *names)
    assert 0 < made < most  # each namespace has one of Kubernetes' own
    assert "exceeded quota: offline-objects" in said


@pytest.mark.parametrize("name", ["system-cluster-critical", "system-node-critical"])
def test_offline_pods_are_critical_to_nobody(environment: Stack, tmp_path: Path, name: str) -> None:
    container = {"name": "task", "image": "task"}
    spec = {"priorityClassName": name, "containers": [container]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pushy"}, "spec": spec}
    assert "would have to go before" in submitted(environment, tmp_path, pod)


def test_events_are_in_their_own_etcd(environment: Stack, pod: dict[str, Any]) -> None:
    del pod  # its start made some

    def keys(unit: str) -> int:
        ask = f"set -a; . /etc/{unit}/ctl.env; etcdctl get /registry/events --prefix --keys-only"
        return int(environment.ssh("control-1", f"{ask} --limit=5 | grep -c . || true"))

    assert keys("etcd-events") > 0
    assert keys("etcd") == 0
    overrides = {flags(environment, group)["etcd-servers-overrides"] for group in API_PORTS}
    assert len(overrides) == 1, "the groups would not see each other's Events"


def test_a_restart_that_a_run_did_not_come_to_is_made_up_for(environment: Stack) -> None:
    def pid() -> str:
        return environment.ssh("control-1", "systemctl show -P MainPID kube-apiserver@offline")

    before = pid()
    # As a run does that is killed after it wrote.
    environment.ssh("control-1", "touch /usr/local/bin/kube-apiserver")
    environment.play("site.yml", "--tags", "kube_apiserver")
    after = pid()
    assert after != before
    environment.play("site.yml", "--tags", "kube_apiserver")
    assert pid() == after
