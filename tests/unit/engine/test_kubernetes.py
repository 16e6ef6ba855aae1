"""Objects of pulumi-kubernetes, against a real apiserver without nodes."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from fleetfoot.engine import _k8s_client

from . import cluster
from .conftest import Project, find_program

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager")
HEAD = """
import os, pathlib
import pulumi_kubernetes as k8s
text = Output.secret(pathlib.Path(os.environ["KUBECONFIG_OF_TEST"]).read_text())
cluster = k8s.Provider("cluster", kubeconfig=text)
on = Opts(provider=cluster)
space = os.environ["SPACE"]
"""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.ControlPlane]:
    found = {name: find_program(name) for name in PROGRAMS}
    if missing := [name for name, path in found.items() if path is None]:
        pytest.skip(f"{', '.join(missing)} neither built nor on PATH")
    programs = {name: str(path) for name, path in found.items()}
    with cluster.run(tmp_path_factory.mktemp("plane"), programs) as plane:
        yield plane


class Stack(Project):
    """A project whose objects are in a namespace of its own."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, plane: cluster.ControlPlane
    ) -> None:
        super().__init__(folder, monkeypatch)
        self.plane = plane
        self.space = re.sub("[^a-z0-9]", "", folder.name.lower())
        monkeypatch.setenv("KUBECONFIG_OF_TEST", str(plane.folder / "kubeconfig"))
        monkeypatch.setenv("SPACE", self.space)
        plane.call("POST", "/api/v1/namespaces", {"metadata": {"name": self.space}})

    def program(self, body: str) -> None:
        super().program("")
        main = self.folder / "__main__.py"
        main.write_text(main.read_text() + HEAD + re.sub("^        ", "", body, flags=re.M))

    def live(self, kind: str, name: str, group: str = "api/v1") -> Any:
        return self.plane.get(f"/{group}/namespaces/{self.space}/{kind}/{name}")


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plane: cluster.ControlPlane) -> Stack:
    return Stack(tmp_path, monkeypatch, plane)


def test_names_hidden_fields_and_nothing_to_do(stack: Stack) -> None:
    body = """
        auto = k8s.core.v1.ConfigMap("auto", metadata={"namespace": space}, data={"a": "1"},
                                     opts=on)
        k8s.core.v1.Secret("named", metadata={"name": "named", "namespace": space},
                           string_data={"password": "geheim"}, opts=on)
        export("name", auto.metadata.name)
        """
    summary = stack.up(body)
    assert summary.ok, summary.errors
    name = stack.engine().outputs()["name"]
    assert re.fullmatch("auto-[0-9a-f]{8}", name)
    live = stack.live("configmaps", name)
    assert live["data"] == {"a": "1"}
    outputs = stack.resource("auto")["outputs"]
    assert outputs["__initialApiVersion"] == "v1"
    assert outputs["__inputs"]["data"] == {"a": "1"}
    assert outputs["metadata"]["uid"] == live["metadata"]["uid"]
    manager = outputs["__fieldManager"]
    assert re.fullmatch("pulumi-kubernetes-[0-9a-f]{8}", manager)
    assert [entry["manager"] for entry in live["metadata"]["managedFields"]] == [manager]
    assert stack.resource("auto")["id"] == f"{stack.space}/{name}"
    annotations = stack.resource("auto")["inputs"]["metadata"]["annotations"]
    assert annotations == {"pulumi.com/autonamed": "true"}

    assert base64.b64decode(stack.live("secrets", "named")["data"]["password"]) == b"geheim"
    text = stack.state_file.read_text()
    assert "geheim" not in text
    assert base64.b64encode(b"geheim").decode() not in text
    assert cluster.TOKEN not in text
    assert stack.engine().up().counts == {"same": 4}
    assert stack.engine().refresh().counts == {"refresh": 2}
    assert stack.engine().up().counts == {"same": 4}
    assert stack.engine().destroy().ok
    assert stack.live("configmaps", name) is None


def test_update_in_place_keeps_what_others_own(stack: Stack) -> None:
    body = """
        k8s.core.v1.Service("svc",
                            metadata={{"name": "svc", "namespace": space, "labels": {labels}}},
                            spec={{"ports": [{{"port": 80}}]}}, opts=on)
        """
    assert stack.up(body.format(labels={"a": "1", "b": "1"})).ok
    path = f"/api/v1/namespaces/{stack.space}/services/svc"
    theirs = {"metadata": {"labels": {"theirs": "x"}, "annotations": {"theirs": "x"}}}
    stack.plane.call("PATCH", path, theirs, "merge-patch+json")
    before = stack.live("services", "svc")
    summary = stack.up(body.format(labels={"a": "2"}))
    assert summary.counts["update"] == 1, summary.errors
    after = stack.live("services", "svc")
    assert after["metadata"]["labels"] == {"a": "2", "theirs": "x"}
    assert after["metadata"]["annotations"] == {"theirs": "x"}
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_conflict_with_another_manager_is_told_and_forced_on_demand(stack: Stack) -> None:
    body = """
        k8s.core.v1.Service("svc", metadata={{"name": "svc", "namespace": space,
                            "labels": {{"a": "{a}"}}, "annotations": {more}}},
                            spec={{"ports": [{{"port": 80}}]}}, opts=on)
        """
    assert stack.up(body.format(a=1, more={})).ok
    path = f"/api/v1/namespaces/{stack.space}/services/svc?fieldManager=other"
    theirs = {"metadata": {"labels": {"a": "theirs"}}}
    stack.plane.call("PATCH", path, theirs, "merge-patch+json")
    summary = stack.up(body.format(a=2, more={}))
    assert not summary.ok
    assert "apply conflict" in summary.errors[0]
    assert "patchForce" in summary.errors[0]
    assert stack.live("services", "svc")["metadata"]["labels"]["a"] == "theirs"
    assert stack.up(body.format(a=2, more={"pulumi.com/patchForce": "true"})).ok
    assert stack.live("services", "svc")["metadata"]["labels"]["a"] == "2"


def test_object_of_somebody_else_is_not_taken(stack: Stack) -> None:
    path = f"/api/v1/namespaces/{stack.space}/configmaps"
    stack.plane.call("POST", path, {"metadata": {"name": "theirs"}, "data": {"a": "theirs"}})
    summary = stack.up("""
        k8s.core.v1.ConfigMap("c", metadata={"name": "theirs", "namespace": space},
                              data={"a": "ours"}, opts=on)
        """)
    assert not summary.ok
    assert "exists already" in summary.errors[0]
    assert stack.live("configmaps", "theirs")["data"] == {"a": "theirs"}
    assert stack.engine().destroy().ok
    assert stack.live("configmaps", "theirs") is not None


def test_immutable_data_makes_a_new_object(stack: Stack) -> None:
    body = """
        auto = k8s.core.v1.ConfigMap("auto", metadata={{"namespace": space}},
                                     data={{"a": "{v}"}}, opts=on)
        k8s.core.v1.ConfigMap("named", metadata={{"name": "named", "namespace": space}},
                              data={{"a": "{v}"}}, opts=on)
        export("name", auto.metadata.name)
        """
    assert stack.up(body.format(v=1)).ok
    first = stack.engine().outputs()["name"]
    uid = stack.live("configmaps", "named")["metadata"]["uid"]
    summary = stack.up(body.format(v=2))
    assert summary.ok, summary.errors
    assert summary.counts["replace"] == 2
    second = stack.engine().outputs()["name"]
    assert first != second
    assert stack.live("configmaps", first) is None
    assert stack.live("configmaps", second)["data"] == {"a": "2"}
    assert stack.live("configmaps", "named")["metadata"]["uid"] != uid


def test_deployment_and_service_are_waited_for(stack: Stack) -> None:
    stack.program("""
        deployment = k8s.apps.v1.Deployment(
            "web", metadata={"name": "web", "namespace": space},
            spec={"replicas": 1, "selector": {"match_labels": {"app": "web"}}, "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"host_network": False, "termination_grace_period_seconds": 0,
                         "containers": [{
                    "name": "c", "image": "i", "resources": {"requests": {"cpu": "1000m"}}}]}}},
            opts=on)
        k8s.core.v1.Service(
            "web", metadata={"name": "web", "namespace": space},
            spec={"selector": {"app": "web"}, "ports": [{"port": 80}]},
            opts=Opts(provider=cluster, depends_on=[deployment]))
        """)
    summaries: list[Any] = []
    thread = threading.Thread(target=lambda: summaries.append(stack.engine().up()))
    thread.start()
    pods = f"/api/v1/namespaces/{stack.space}/pods"
    found = cluster.until(
        lambda: stack.plane.get(pods)["items"], "the Deployment has a Pod", thread.is_alive
    )
    # The Pod exists, so the Deployment is applied; the engine still waits.
    assert thread.is_alive()
    name = found[0]["metadata"]["name"]
    pod = f"{pods}/{name}"
    # Only Pods of a node that exists become endpoints.
    stack.plane.call("POST", "/api/v1/nodes", {"metadata": {"name": stack.space}})
    bound = {"metadata": {"name": name}, "target": {"kind": "Node", "name": stack.space}}
    stack.plane.call("POST", f"{pod}/binding", bound)
    stack.plane.set_status(
        pod,
        {
            "phase": "Running",
            "podIP": "10.1.0.1",
            "podIPs": [{"ip": "10.1.0.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    )
    thread.join(60)
    assert summaries, "the run did not end"
    assert summaries[0].ok, summaries[0].errors
    assert stack.resource("web")["outputs"]["status"]
    # Neither `hostNetwork: false` nor `1000m` is a change, although the server writes them its way.
    assert stack.engine().up().counts == {"same": 4}
    assert stack.engine().destroy().ok
    assert stack.plane.get(pods)["items"] == []


def test_object_that_is_not_ready_in_time_stays_and_is_told(stack: Stack) -> None:
    body = """
        k8s.core.v1.Service("svc", metadata={{"name": "svc", "namespace": space, "annotations": {{
            "pulumi.com/timeoutSeconds": "1", {more}}}}},
            spec={{"selector": {{"app": "none"}}, "ports": [{{"port": 80}}]}}, opts=on)
        """
    summary = stack.up(body.format(more=""))
    assert not summary.ok
    assert "does not target any Pods" in summary.errors[0]
    assert stack.live("services", "svc") is not None
    assert "does not target any Pods" in stack.resource("svc")["initErrors"][0]
    # The next run tries again, although no input changed.
    assert not stack.engine().up().ok
    assert stack.up(body.format(more='"pulumi.com/skipAwait": "true"')).ok
    assert "initErrors" not in stack.resource("svc")


def test_job_that_fails_is_told_at_once(stack: Stack) -> None:
    stack.program("""
        k8s.batch.v1.Job("job", metadata={"name": "job", "namespace": space},
            spec={"backoff_limit": 0, "template": {"spec": {
                "restart_policy": "Never", "containers": [{"name": "c", "image": "i"}]}}}, opts=on)
        """)
    summaries: list[Any] = []
    thread = threading.Thread(target=lambda: summaries.append(stack.engine().up()))
    thread.start()
    pods = f"/api/v1/namespaces/{stack.space}/pods"
    found = cluster.until(
        lambda: stack.plane.get(pods)["items"], "the Job has a Pod", thread.is_alive
    )
    stack.plane.set_status(f"{pods}/{found[0]['metadata']['name']}", {"phase": "Failed"})
    thread.join(60)
    assert summaries, "the run did not end"
    assert "Job failed" in summaries[0].errors[0]


def test_custom_resources_wait_for_their_definition(stack: Stack) -> None:
    group = f"{stack.space}.example.com"
    body = f"""
        crd = k8s.apiextensions.v1.CustomResourceDefinition(
            "crd", metadata={{"name": "things.{group}"}},
            spec={{"group": "{group}", "scope": "Namespaced",
                  "names": {{"plural": "things", "singular": "thing", "kind": "Thing"}},
                  "versions": [{{"name": "v1", "served": True, "storage": True, "schema": {{
                      "open_apiv3_schema": {{"type": "object",
                                            "x_kubernetes_preserve_unknown_fields": True}}}}}}]}},
            opts=on)
        k8s.apiextensions.CustomResource(
            "thing", api_version="{group}/v1", kind="Thing",
            metadata={{"name": "thing", "namespace": space}}, spec={{"a": VALUE}},
            opts=Opts(provider=cluster, depends_on=[crd]))
        """
    assert stack.up(body.replace("VALUE", "1")).ok
    assert stack.live("things", "thing", f"apis/{group}/v1")["spec"] == {"a": 1}
    assert stack.engine().up().counts == {"same": 4}
    summary = stack.up(body.replace("VALUE", "2"))
    assert summary.counts["update"] == 1, summary.errors
    assert stack.live("things", "thing", f"apis/{group}/v1")["spec"] == {"a": 2}
    assert stack.engine().destroy().ok


def test_namespace_is_waited_for_until_it_is_gone(stack: Stack) -> None:
    body = """
        inner = k8s.core.v1.Namespace("inner", metadata={"name": f"{space}-inner"}, opts=on)
        k8s.core.v1.ConfigMap("c", metadata={"namespace": inner.metadata.name}, opts=on)
        """
    assert stack.up(body).ok
    assert stack.engine().destroy().ok
    assert stack.plane.get(f"/api/v1/namespaces/{stack.space}-inner") is None


def test_refresh_sees_drift_and_up_undoes_it(stack: Stack) -> None:
    body = """
        k8s.core.v1.Service("svc", metadata={"name": "svc", "namespace": space},
            spec={"ports": [{"port": 80}]}, opts=on)
        k8s.core.v1.Service("gone", metadata={"name": "gone", "namespace": space},
            spec={"ports": [{"port": 80}]}, opts=on)
        """
    assert stack.up(body).ok
    path = f"/api/v1/namespaces/{stack.space}/services"
    drift = {"spec": {"ports": [{"port": 81, "protocol": "TCP", "targetPort": 81}]}}
    stack.plane.call("PATCH", f"{path}/svc", drift, "merge-patch+json")
    stack.plane.call("DELETE", f"{path}/gone")
    assert stack.engine().refresh().counts == {"update": 1, "delete": 1}
    assert stack.resource("svc")["inputs"]["spec"]["ports"] == [{"port": 81}]
    summary = stack.engine().preview()
    assert summary.counts["update"] == 1
    assert summary.counts["create"] == 1


@pytest.mark.parametrize("hangs_up", [True, False], ids=["hangs-up", "keeps-silent"])
def test_cluster_that_does_not_answer_is_asked_once(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, hangs_up: bool
) -> None:
    """While its machine is away: each try could take seconds, and nothing is known to have gone."""
    monkeypatch.setattr(_k8s_client, "_PATIENCE", urllib3.Timeout(5))
    config = tmp_path / "kubeconfig"
    config.write_text(Path(os.environ["KUBECONFIG_OF_TEST"]).read_text())
    monkeypatch.setenv("FILE_OF_TEST", str(config))
    stack.program("""
        there = Opts(provider=k8s.Provider("there", kubeconfig=os.environ["FILE_OF_TEST"]))
        for number in range(5):
            k8s.core.v1.ConfigMap(f"c{number}", metadata={"name": f"c{number}", "namespace": space},
                                  opts=there)
        """)
    assert stack.engine().up().ok
    tries: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    tries.append(listener.accept()[0])
                    if hangs_up:
                        tries[-1].close()

        thread = threading.Thread(target=take)
        thread.start()
        port = listener.getsockname()[1]
        config.write_text(config.read_text().replace(f":{stack.plane.port}", f":{port}"))
        summary = stack.engine().refresh()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in tries:
        connection.close()
    assert summary.ok
    assert len(tries) == 1
    assert stack.resource("c4")["id"]


def test_ignored_changes_stay_with_their_owner(stack: Stack) -> None:
    body = """
        k8s.apps.v1.Deployment(
            "d", metadata={{"name": "d", "namespace": space,
                           "annotations": {{"pulumi.com/skipAwait": "true"}}}},
            spec={{"replicas": 1, "paused": {v}, "selector": {{"match_labels": {{"app": "d"}}}},
                  "template": {{"metadata": {{"labels": {{"app": "d"}}}},
                               "spec": {{"containers": [{{"name": "c", "image": "i"}}]}}}}}},
            opts=Opts(provider=cluster, ignore_changes=["spec.replicas"]))
        """
    assert stack.up(body.format(v=False)).ok
    path = f"/apis/apps/v1/namespaces/{stack.space}/deployments/d"
    stack.plane.call("PATCH", path, {"spec": {"replicas": 3}}, "merge-patch+json")
    assert stack.up(body.format(v=True)).ok
    spec = stack.plane.get(path)["spec"]
    assert spec["paused"] is True
    assert spec["replicas"] == 3


def test_killed_creation_is_found_again(stack: Stack) -> None:
    stack.program("""
        k8s.core.v1.ConfigMap("auto", metadata={"namespace": space}, data={"a": "1"}, opts=on)
        """)
    # The fourth save is the one after the object was made.
    process = stack.process(SAVES="6")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -9, output
    path = f"/api/v1/namespaces/{stack.space}/configmaps"

    def ours() -> list[str]:
        return [
            item["metadata"]["name"]
            for item in stack.plane.get(path)["items"]
            if item["metadata"]["name"].startswith("auto-")
        ]

    (made,) = ours()
    assert [op["type"] for op in stack.state()["pending_operations"]] == ["creating"]
    summary = stack.engine().up()
    assert summary.ok, summary.errors
    assert ours() == [made]
    assert "pending_operations" not in stack.state()
    assert stack.engine().destroy().ok
    assert ours() == []


def test_preview_asks_the_server_and_changes_nothing(stack: Stack) -> None:
    stack.program("""
        c = k8s.core.v1.Service("c", metadata={"name": "c", "namespace": space},
                                spec={"ports": [{"port": 80}]}, opts=on)
        c.spec.type.apply(lambda t: print("type is", t))
        """)
    assert stack.engine().preview().counts == {"create": 3}
    assert stack.live("services", "c") is None
    assert ("info", "type is ClusterIP") in stack.display.said or stack.engine().preview().ok
    assert ("info", "type is ClusterIP") in stack.display.said


def test_cluster_that_comes_with_the_same_run(stack: Stack) -> None:
    """The kubeconfig is an output of a resource that does not exist yet."""
    stack.program("""
        config = pathlib.Path(os.environ["KUBECONFIG_OF_TEST"]).read_text()
        maker = Item("maker", Output.secret(config))
        later = k8s.Provider("later", kubeconfig=maker.size.apply(lambda _: maker.content))
        k8s.core.v1.ConfigMap("c", metadata={"name": "c", "namespace": space},
                              opts=Opts(provider=later))
        """)
    assert stack.engine().preview().counts == {"create": 5}
    summary = stack.engine().up()
    assert summary.ok, summary.errors
    assert stack.live("configmaps", "c") is not None
    assert stack.engine().up().counts == {"same": 5}


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ('k8s.helm.v3.Release("r", chart="c", opts=on)', "Helm"),
        ('k8s.helm.v4.Chart("r", chart="c", opts=on)', "remote component"),
        ('k8s.yaml.v2.ConfigGroup("g", yaml="a: b", opts=on)', "remote component"),
        ('k8s.yaml.ConfigGroup("g", yaml=["kind: X"], opts=on)', "kubernetes:yaml:decode"),
        ('k8s.kustomize.v2.Directory("k", directory="d", opts=on)', "remote component"),
        ('k8s.Provider("r", kubeconfig=text, render_yaml_to_directory="d")', "renderYaml"),
        ('k8s.Provider("r", kubeconfig=text, enable_server_side_apply=False)', "server-side"),
        (
            'k8s.core.v1.ConfigMap("c", metadata={"annotations": {'
            '"pulumi.com/waitFor": "condition=Ready"}}, opts=on)',
            "waitFor",
        ),
        ('k8s.core.v1.ConfigMap.get("c", "default/c", opts=on)', "does not own"),
    ],
)
def test_unsupported_parts_are_refused(stack: Stack, body: str, what: str) -> None:
    summary = stack.up(f"        {body}\n")
    assert not summary.ok
    told = " ".join(summary.errors)
    assert what in told, told
    assert "Pulumi CLI" in told
