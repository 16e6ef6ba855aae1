"""Dynamic providers: what `pulumi up` does for each kind of resource of ours.

Each class is importable and holds no state, so its serialised form is the same on every run and in
every checkout. Every create may be repeated after it was cut off: ids follow from names, and what
is there already is taken over.
"""

from __future__ import annotations

import http.client
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pulumi.dynamic import (
    CheckFailure,
    CheckResult,
    CreateResult,
    DiffResult,
    ReadResult,
    ResourceProvider,
    UpdateResult,
)

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs import building
from fleetfoot.machines.fleet import Fleet
from fleetfoot.machines.network import NetworkSpec
from fleetfoot.paths import StackPaths
from fleetfoot.registry import Registry
from fleetfoot.stack import onboarding, rolling
from fleetfoot.stack.bootimage import boot_image, tell
from fleetfoot.stack.rolling import MachineInputs

__all__ = [
    "ContainerImageProvider",
    "EndpointProvider",
    "ImageProvider",
    "MachineProvider",
    "NetworkProvider",
    "PlaybookProvider",
]

Props = dict[str, Any]

_ANSWER_SECONDS, _ANSWER_PAUSE = 180, 0.5
_DAY_SECONDS = 86400


class _Provider(ResourceProvider):
    """What all of ours share: a plain difference of inputs."""

    # Nothing secret is in a class's name; readable state is worth more.
    serialize_as_secret_always = False
    #: Inputs whose change is a change of the resource.
    inputs: tuple[str, ...] = ()
    #: Those of them whose change makes a new resource.
    replacing: tuple[str, ...] = ()

    def identity(self, props: Props) -> str:
        """Return the id that a resource of these inputs has."""
        raise NotImplementedError

    def refusals(self, _olds: Props, _news: Props) -> list[CheckFailure]:
        """Return what of the inputs cannot be; the configuration was checked before."""
        return []

    def check(self, olds: Props, news: Props) -> CheckResult:
        """Look at the inputs, and tell the id: what was created by half can then be deleted."""
        return CheckResult({**news, "__id": self.identity(news)}, self.refusals(olds, news))

    def diff(self, _id: str, olds: Props, news: Props) -> DiffResult:
        """Compare the inputs one by one."""
        changed = [key for key in self.inputs if olds.get(key) != news.get(key)]
        replaces = [key for key in changed if key in self.replacing]
        return DiffResult(
            changes=bool(changed), replaces=replaces, delete_before_replace=bool(replaces)
        )

    def update(self, _id: str, _olds: Props, news: Props) -> UpdateResult:
        """Create it as it is now wanted: what is there already is taken over."""
        return UpdateResult(self.create(news).outs)


class NetworkProvider(_Provider):
    """The stack's namespace, bridge, names and uplink."""

    inputs = replacing = ("stack", "cidr", "uplink", "zone", "cluster")

    def identity(self, props: Props) -> str:
        """One a stack."""
        return f"network-{props['stack']}"

    def refusals(self, olds: Props, news: Props) -> list[CheckFailure]:
        """Refuse another network below machines that live in this one."""
        changed = [key for key in self.inputs if key in olds and olds[key] != news[key]]
        machines = StackPaths(news["stack"]).machines
        if not changed or not machines.exists() or not any(machines.iterdir()):
            return []
        was, now = ([props[key] for key in changed] for props in (olds, news))
        reason = (
            f"fleetfoot:network: {', '.join(changed)} was {was} and would be {now}; the stack's"
            " machines have their addresses there and would be lost. Take the change back, or run"
            " `make down` first"
        )
        return [CheckFailure(changed[0], reason)]

    def _spec(self, props: Props) -> NetworkSpec:
        own = tuple(props.get("cluster") or ())
        return NetworkSpec(props["stack"], props["cidr"], props["uplink"], props["zone"], own)

    def create(self, props: Props) -> CreateResult:
        """Make the network."""
        spec = self._spec(props)
        public = Fleet(spec).create_network()
        outs = {"gateway": spec.gateway, "prefix": spec.prefix, "public_key": public}
        return CreateResult(self.identity(props), {**props, **outs})

    def read(self, id_: str, props: Props) -> ReadResult:
        """See whether it is whole; a broken one counts as gone and is made again."""
        spec = self._spec(props)
        return ReadResult(id_ if Fleet(spec).network.ready else "", props)

    def delete(self, _id: str, props: Props) -> None:
        """Remove it."""
        spec = self._spec(props)
        Fleet(spec).delete_network()


class ImageProvider(_Provider):
    """An image built from images/, kept in the cache; machines keep an old one until they roll."""

    inputs = ("name", "key")

    def identity(self, props: Props) -> str:
        """One a definition."""
        return f"image-{props['name']}"

    def create(self, props: Props) -> CreateResult:
        """Build the image unless the cache has it."""
        return CreateResult(self.identity(props), {**props, "boot": boot_image(props["name"])})

    def read(self, id_: str, props: Props) -> ReadResult:
        """See whether the cache still has it."""
        return ReadResult(id_ if Path(props["boot"]["path"]).exists() else "", props)

    def delete(self, _id: str, _props: Props) -> None:
        """Keep the cache: it is the user's, and the next stack is glad of it."""


class ContainerImageProvider(_Provider):
    """A container image built from images/ and pushed to the stack's registry, with its lazy form.

    An old one stays there for pods that still name it.
    """

    inputs = ("stack", "name", "key", "form", "registry", "address")

    def identity(self, props: Props) -> str:
        """One a definition."""
        return f"container-{props['name']}"

    def create(self, props: Props) -> CreateResult:
        """Build the image unless the cache has it, and push it unless the registry has it."""
        layout = Path(boot_image(props["name"])["path"])
        registry = self._registry(props)
        reference = building.push(registry, layout, props["name"], tell)
        return CreateResult(self.identity(props), {**props, "reference": reference})

    def read(self, id_: str, props: Props) -> ReadResult:
        """See whether the registry still has it; one that does not answer is given the benefit."""
        try:
            found = self._registry(props).has(props["name"], props["reference"].partition("@")[2])
        except FleetfootError as silent:
            tell(str(silent))
            found = True
        return ReadResult(id_ if found else "", props)

    def _registry(self, props: Props) -> Registry:
        return Registry(props["stack"], props["registry"], props["address"])

    def delete(self, _id: str, _props: Props) -> None:
        """Images go with the registry."""


class EndpointProvider(_Provider):
    """A service that answers: what waits for it may use it."""

    inputs = replacing = ("name", "url")

    def identity(self, props: Props) -> str:
        """One a service."""
        return f"endpoint-{props['name']}"

    def create(self, props: Props) -> CreateResult:
        """Wait until the address answers with status 200."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while (status := _status(props["url"])) != HTTPStatus.OK:
            if time.monotonic() > deadline:
                raise FleetfootError(
                    f"{props['url']} did not answer within {_ANSWER_SECONDS} s (last: {status})",
                    "nobody can use the service yet",
                    "see its pods (`fleetfoot kubectl -- get pods -A`), then run `make up` again",
                )
            time.sleep(_ANSWER_PAUSE)
        return CreateResult(self.identity(props), props)

    def delete(self, _id: str, _props: Props) -> None:
        """It goes with the service."""


def _status(url: str) -> int | str:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException) as silent:
        return str(silent)
    finally:
        connection.close()


class MachineProvider(_Provider):
    """One machine; a change of it rolls through its pool."""

    replacing = ("name", "stack", "backend")
    # `roll` says how a change is made and is no change by itself.
    inputs = (
        *replacing,
        "pool",
        "image",
        "cpus",
        "memory",
        "disk",
        "aliases",
        "volumes",
        "budgets",
        "node",
    )

    def identity(self, props: Props) -> str:
        """The machine's name."""
        return str(props["name"])

    def refusals(self, _olds: Props, news: Props) -> list[CheckFailure]:
        """Refuse a specification that no backend can take."""
        if any((news.get("roll") or {"max_unavailable": 1}).values()):
            return []
        reason = "max_surge and max_unavailable are both 0, so nothing could ever roll; set one"
        return [CheckFailure("roll", reason)]

    def create(self, props: Props) -> CreateResult:
        """Make the machine and wait for SSH."""
        inputs = MachineInputs(props)
        return CreateResult(self.identity(props), {**props, **rolling.create(inputs)})

    def diff(self, id_: str, olds: Props, news: Props) -> DiffResult:
        """Compare the inputs; a machine that does not run is to be made again."""
        found = super().diff(id_, olds, news)
        found.changes = found.changes or not olds.get("started")
        return found

    def read(self, id_: str, props: Props) -> ReadResult:
        """See whether it runs. One that does not stays known: there is a disk and a node to it."""
        machine = Fleet.of_stack(props["stack"]).read(props["name"])
        rolling.settle(MachineInputs(props))
        return ReadResult(id_, {**props, "started": machine.started if machine else 0})

    def update(self, _id: str, olds: Props, news: Props) -> UpdateResult:
        """Replace the machine in its turn: drain, stop, boot, wait for Ready."""
        return UpdateResult({**news, **rolling.update(MachineInputs(olds), MachineInputs(news))})

    def delete(self, _id: str, props: Props) -> None:
        """Drain the node and remove the machine."""
        rolling.delete(MachineInputs(props))


class PlaybookProvider(_Provider):
    """A playbook run on some hosts of an inventory."""

    replacing = ("name", "stack")
    # The inventory names machines that this run may not concern; `triggers` says what does.
    inputs = (*replacing, "playbook", "limit", "tags", "nodes", "digest", "triggers")

    def identity(self, props: Props) -> str:
        """One a run."""
        return f"playbook-{props['name']}"

    def diff(self, id_: str, olds: Props, news: Props) -> DiffResult:
        """Compare the inputs; a run that is older than `repeat` days is due again."""
        found = super().diff(id_, olds, news)
        due = float(olds.get("ran") or 0) + float(news.get("repeat") or 0) * _DAY_SECONDS
        found.changes = found.changes or (bool(news.get("repeat")) and time.time() > due)
        return found

    def create(self, props: Props) -> CreateResult:
        """Run the playbook."""
        onboarding.run(props)
        return CreateResult(self.identity(props), {**props, "ran": time.time()})

    def delete(self, _id: str, _props: Props) -> None:
        """What a playbook did goes with its machines."""
