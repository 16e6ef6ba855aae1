"""A control plane and a node that are upgraded while clients write: hosts of one's own."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from fleetfoot import artifacts, shell
from fleetfoot.cluster import is_ready
from fleetfoot.machines import ssh
from fleetfoot.machines.fleet import Fleet
from fleetfoot.machines.network import NetworkSpec
from fleetfoot.machines.spec import BootImage, MachineSpec
from fleetfoot.paths import StackPaths
from fleetfoot.stack.bootimage import boot_image
from fleetfoot.stack.inventory import API_PORTS, zone
from fleetfoot.stack.teardown import teardown
from tests.e2e.counter import Counter
from tests.e2e.stacks import PROJECT, eventually, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.long]

STACK = "e2e-upgrade"
#: Folders of tools/ with what an upgrade begins from.
FROM = ["kubernetes-1.36", "kubernetes-1.35"]
CONTROL = ("control-0", "control-1", "control-2")
# The sample's front ends stand on machines of their own; here they share.
FRONTS = {"front-0": "control-0", "front-1": "control-1"}
NODE = "worker-0"
#: Where each group's apiservers listen on their machines.
PORTS = {"online": 7443, "offline": 7444}
RANGES = {"fleetfoot_pod_cidr": "10.69.0.0/16", "fleetfoot_service_cidr": "10.70.0.0/16"}


class Hosts:
    """Machines that no pool has, and an inventory that a person could have written.

    Attributes:
        fleet: The machines.
        addresses: Theirs.
        inventory: The file.
    """

    def __init__(self, folder: Path) -> None:
        ranges = tuple(RANGES.values())
        network = NetworkSpec(STACK, "10.68.0.0/24", "10.68.255.0/30", zone(STACK), ranges)
        self.fleet = Fleet(network)
        self.fleet.create_network()
        self.addresses = {name: self._control(name) for name in CONTROL}
        own = MachineSpec(NODE, "own", "qemu", BootImage(**boot_image("generic")), 2, 2048, 10240)
        self.addresses[NODE] = self.fleet.create(own, {}).address
        self.inventory = folder / "hosts.yml"
        self.state = self.fleet.paths.root

    def _control(self, name: str) -> str:
        names = ("api-online", "api-offline", "registry") if name in FRONTS.values() else ()
        image = BootImage(**boot_image("control"))
        spec = MachineSpec(name, "own", "nspawn", image, 2, 2560, 0, names)
        return self.fleet.create(spec, {}).address

    def reinstall(self, name: str) -> None:
        """Give a control machine a new disk; address and name stay, its SSH host key does not."""
        self.fleet.delete(name)
        assert self._control(name) == self.addresses[name]

    def voters(self) -> set[str]:
        """Return the members of etcd that vote, as one knows them that stays."""
        ask = "set -a; . /etc/etcd/ctl.env; etcdctl member list --write-out=json"
        said = shell.run([*ssh.command(STACK), f"root@{self.addresses[CONTROL[0]]}", ask])
        return {one["name"] for one in json.loads(said)["members"] if not one.get("isLearner")}

    def write(self, programs: Path) -> None:
        """Write the inventory: the sample `ha` with these machines and programs."""
        sample: dict[str, Any] = yaml.safe_load(
            (PROJECT / "inventory/samples/ha/hosts.yml").read_text()
        )
        every = sample["all"]
        groups = every["children"]
        groups["load_balancer"]["hosts"] = dict.fromkeys(FRONTS.values())
        groups["registry"]["hosts"] = {"control-0": None}
        groups["workers"]["hosts"] = {NODE: None}
        # In place, for aliases of a machine share its facts.
        facts = every["hosts"]
        every["hosts"] = {name: facts[name] for name in self.addresses}
        for name, address in self.addresses.items():
            facts[name]["ansible_host"] = address
        paths = self.fleet.paths
        versions = json.loads((programs / "versions.json").read_text())
        every["vars"] |= {
            **RANGES,
            "fleetfoot_zone": zone(STACK),
            "fleetfoot_resolver": self.fleet.network.spec.gateway,
            "fleetfoot_state_dir": str(paths.root),
            "fleetfoot_artifacts_dir": str(programs),
            "fleetfoot_front": self.addresses["control-0"],
            "ansible_ssh_private_key_file": str(paths.ssh_key),
            "node_software_versions": {
                "kubernetes": versions["kubelet"].removeprefix("v"),
                "containerd": versions["containerd"].removeprefix("v"),
                "etcd": versions["etcd"].removeprefix("v"),
                "coredns": versions["coredns"].removeprefix("v"),
                "cni-plugins": versions["bridge"].removeprefix("v"),
            },
            # The stock kernel has USB drivers loaded; the role would ask for a restart.
            "usb_disable_unload": True,
        }
        every["vars"]["ansible_ssh_common_args"] += f" -o UserKnownHostsFile={paths.known_hosts}"
        self.inventory.write_text(yaml.safe_dump(sample))

    def play(self, playbook: str, *options: str, check: bool = True) -> str:
        """Run a playbook; return what it said."""
        argv = ("-i", self.inventory, f"playbooks/{playbook}", *options)
        return run("ansible-playbook", *argv, check=check, timeout=2400)

    def part_sides(self, folder: Path) -> None:
        """Give the cluster lanes, and submitters of offline their place, as the runbook does.

        Kinds that it does not serve yet come after its upgrade.
        """
        manifests = folder / "sides.yml"
        url = f"https://api-offline.{zone(STACK)}:{API_PORTS['offline']}"
        objects = yaml.safe_load_all(run("fleetfoot", "sides", "--offline-url", url))
        served = self.kubectl("api-resources", "--no-headers").split()
        manifests.write_text(yaml.safe_dump_all(one for one in objects if one["kind"] in served))
        self.kubectl("apply", "--server-side", "-f", str(manifests))

    def kubectl(self, *argv: str, group: str = "online") -> str:
        """Run kubectl as an operator, or as offline's submitter."""
        program = artifacts.directory() / "kubectl"
        config = self.fleet.paths.kubeconfig_of(group)
        argv = (str(program), f"--kubeconfig={config}", *argv)
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    def nodes(self) -> list[Any]:
        """Return the nodes."""
        found: list[Any] = json.loads(self.kubectl("get", "nodes", "-o", "json"))["items"]
        return found

    def versions(self) -> set[str]:
        """Return what each apiserver and each kubelet says that it is."""
        groups = yaml.safe_load(self.inventory.read_text())["all"]["children"]["kube_apiserver"]
        servers = {
            json.loads(
                self.kubectl(
                    "get",
                    "--raw=/version",
                    f"--server=https://{facts['ansible_host']}:{port}",
                    group=group,
                )
            )["gitVersion"]
            for group, port in PORTS.items()
            for facts in self._facts(groups["children"][f"apiserver_{group}"]["hosts"])
        }
        return servers | {node["status"]["nodeInfo"]["kubeletVersion"] for node in self.nodes()}

    def _facts(self, hosts: dict[str, Any]) -> list[dict[str, Any]]:
        """Facts of hosts, which aliases have themselves."""
        return [facts or {"ansible_host": self.addresses[name]} for name, facts in hosts.items()]

    def counting(self, group: str = "online", identity: str = "operator") -> Counter:
        """Return a client that asks either load balancer."""
        fronts = [self.addresses[name] for name in FRONTS.values()]
        return Counter(self.state / "pki", fronts, group, identity)


def remove() -> None:
    """Remove machines and backups: one of another run would be taken for this one's."""
    teardown(STACK, keep_state=False)
    shutil.rmtree(StackPaths(STACK).root, ignore_errors=True)


@pytest.fixture(scope="module", params=FROM)
def hosts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hosts]:
    """A cluster of an earlier version."""
    folder = tmp_path_factory.mktemp("hosts")
    programs = artifacts.earlier_directory(request.param, print)
    remove()  # what a killed run left
    try:
        made = Hosts(folder)
        made.write(programs)
        made.play("site.yml")
        made.part_sides(folder)
        made.play("onboard.yml")
        eventually(lambda: [is_ready(node) for node in made.nodes()] == [True])
        yield made
    finally:
        remove()


def test_an_upgrade_is_not_felt(hosts: Hosts, tmp_path: Path) -> None:
    old = hosts.versions()
    current = artifacts.directory()
    wanted = json.loads((current / "versions.json").read_text())["kube-apiserver"]
    assert old != {wanted}
    assert len(old) == 1
    hosts.write(current)
    with hosts.counting() as online, hosts.counting("offline", "offline") as offline:
        hosts.play("upgrade.yml")
    for side in (online, offline):
        print(f"{side.acknowledged} writes, sent again: {side.failed}")
    assert not online.turned_away + offline.turned_away
    assert hosts.versions() == {wanted}
    hosts.part_sides(tmp_path)
    assert hosts.kubectl("get", "mutatingadmissionpolicies", "--output=name")
    assert [is_ready(node) for node in hosts.nodes()] == [True]
    assert not any(node["spec"].get("unschedulable") for node in hosts.nodes())
    assert list((hosts.state / "backups").glob(f"before-{wanted}-*.tar"))
    hosts.write(artifacts.earlier_directory("kubernetes-1.36", print))
    refused = hosts.play("upgrade.yml", check=False)
    assert "is older: it may" in " ".join(refused.split()), refused
    assert hosts.versions() == {wanted}
    hosts.write(current)


def test_a_reinstalled_control_machine_takes_its_place_again(hosts: Hosts) -> None:
    before = hosts.versions()
    with hosts.counting():
        hosts.reinstall(CONTROL[1])
        hosts.play("site.yml")
    assert hosts.voters() == set(CONTROL)
    assert hosts.versions() == before
