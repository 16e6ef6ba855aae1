"""The objects that keep online and offline apart, as data."""

from __future__ import annotations

from typing import Any

from fleetfoot.stack import sides


def test_a_lane_is_a_level_and_then_its_schema() -> None:
    kinds = [(each["kind"], each["metadata"]["name"]) for each in sides.lanes()]
    assert kinds == [
        (kind, f"fleetfoot-{lane.name}")
        for lane in sides.LANES
        for kind in ("PriorityLevelConfiguration", "FlowSchema")
    ]


def test_lanes_are_asked_in_their_order() -> None:
    order = [lane.precedence for lane in sides.LANES]
    assert order == sorted(set(order))


def test_many_nodes_wait_neither_before_their_heartbeats_nor_before_the_scheduler() -> None:
    """Heartbeats, nodes' other requests and the system have a lane each."""
    of_nodes = [lane for lane in sides.LANES if ("Group", "system:nodes") in lane.subjects]
    assert [lane.name for lane in of_nodes] == ["nodes", "kubelets"]
    heartbeats, others = of_nodes
    named = {name for rule in heartbeats.rules for name in rule["resources"]}
    assert named == {"leases", "nodes", "nodes/status"}
    assert not heartbeats.paths
    assert not heartbeats.lendable
    (rule,) = others.rules
    assert rule["resources"] == ["*"]
    assert others.paths


def test_pods_are_given_the_address_that_admission_was_told() -> None:
    pods = sides.admission("https://api-offline.x.internal:6444")[0]
    containers, token = pods["spec"]["mutations"]
    address = containers["applyConfiguration"]["expression"]
    assert "value: 'api-offline.x.internal'" in address
    assert "value: '6444'" in address
    assert "value: 'https://api-offline.x.internal'" in token["jsonPatch"]["expression"]


def policy(name: str) -> dict[str, Any]:
    """What a policy says."""
    objects = sides.admission("https://api-offline.x.internal:6444")
    kinds = ("ValidatingAdmissionPolicy", "MutatingAdmissionPolicy")
    spec: dict[str, Any] = next(
        each["spec"]
        for each in objects
        if each["kind"] in kinds and each["metadata"]["name"] == name
    )
    return spec


def test_services_of_the_offline_side_divert_nothing() -> None:
    """Neither when they are made nor by a later change."""
    services = policy("fleetfoot-offline-services")
    (rule,) = services["matchConstraints"]["resourceRules"]
    assert rule["resources"] == ["services"]
    assert rule["operations"] == ["CREATE", "UPDATE"]
    (validation,) = services["validations"]
    assert "'ClusterIP'" in validation["expression"]
    assert "externalIPs" in validation["expression"]


def test_each_offline_namespace_has_its_access_and_its_lane() -> None:
    names = ["offline", "training"]
    kinds = [(each["kind"], each["metadata"]) for each in sides.workplace(names)]
    places = [metadata["name"] for kind, metadata in kinds if kind == "Namespace"]
    assert places == [metadata["name"] for _, metadata in kinds[: len(names)]] == names
    assert [m["namespace"] for kind, m in kinds if kind == "RoleBinding"] == names
    schema = next(
        each["spec"]
        for each in sides.lanes(names)
        if each["kind"] == "FlowSchema" and each["metadata"]["name"] == "fleetfoot-offline"
    )
    groups = [subject["group"]["name"] for subject in schema["rules"][0]["subjects"]]
    assert groups == [sides.OFFLINE_GROUP, *(f"system:serviceaccounts:{name}" for name in names)]


def test_each_offline_namespace_holds_so_much() -> None:
    names = ["offline", "training"]
    quotas = [
        each for each in sides.workplace(names, {"pods": 7}) if each["kind"] == "ResourceQuota"
    ]
    assert [each["metadata"]["namespace"] for each in quotas] == names
    assert all(each["spec"]["hard"] == {"count/pods": "7"} for each in quotas)


def test_what_submitters_may_make_is_counted() -> None:
    role = next(each for each in sides.workplace() if each["kind"] == "ClusterRole")
    made = {
        f"{resource}.{group}".rstrip(".")
        for rule in role["rules"]
        if "create" in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert made == {"pods", *sides.OFFLINE_OBJECTS}


def test_the_label_belongs_to_the_namespaces_of_the_list() -> None:
    objects = sides.admission("https://api-offline.x.internal:6444", ["offline", "training"])
    policy, binding = (
        each["spec"]
        for each in objects
        if each["metadata"]["name"] == "fleetfoot-offline-namespaces"
    )
    assert "in ['offline', 'training']" in policy["validations"][0]["expression"]
    assert "matchResources" not in binding  # it holds in every namespace


def test_every_binding_follows_its_policy() -> None:
    seen = set()
    for each in sides.admission("https://api-offline.x.internal:6444"):
        if each["kind"].endswith("Binding"):
            assert each["spec"]["policyName"] in seen
        seen.add(each["metadata"]["name"])
