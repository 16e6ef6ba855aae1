"""Provider resources, and the providers that they configure."""

from __future__ import annotations

import threading
import uuid
from typing import TYPE_CHECKING, Final

from fleetfoot.engine import _urn
from fleetfoot.engine._errors import EngineError, UnsupportedError
from fleetfoot.engine._provider import Call, Checked, Diff, Provider
from fleetfoot.engine._values import Properties, equal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fleetfoot.engine._state import ResourceState

INTERNAL: Final = "__internal"


class Package:
    """How a package's provider resources are checked, compared and made to work.

    Args:
        start: Makes a provider from their inputs.
    """

    def __init__(self, start: Callable[[Properties], Provider]) -> None:
        self._start = start

    def check_config(self, inputs: Properties) -> Checked:
        """Validates the provider resource's inputs."""
        return Checked(dict(inputs))

    def diff_config(self, _old: Properties, _new: Properties) -> Diff:
        """Compares them; here the engine does, and resources never move."""
        return Diff(None)

    def configure(self, inputs: Properties) -> Provider:
        """Makes a provider that works with them."""
        return self._start(inputs)


class Registry(Provider):
    """Handles resources of type `pulumi:providers:*`, and finds the provider of any other.

    Args:
        packages: What this engine has, by package name; made on first use.
        old: The resources in state, whose providers are configured on first use.
    """

    def __init__(
        self, packages: dict[str, Callable[[], Package]], old: Iterable[ResourceState]
    ) -> None:
        self._packages = packages
        self._made: dict[str, Package] = {}
        self._old = {f"{item.urn}::{item.id}": item for item in old if _urn.is_provider(item.type)}
        self._live: dict[str, Provider] = {}
        self._lock = threading.RLock()

    def package(self, name: str) -> Package:
        """The package, or a refusal that names it."""
        if name not in self._packages:
            raise UnsupportedError(f"The provider {name!r}")
        with self._lock:
            if name not in self._made:
                self._made[name] = self._packages[name]()
            return self._made[name]

    def get(self, reference: str) -> Provider:
        """The configured provider of a reference `urn::id`."""
        with self._lock:
            if reference not in self._live:
                if reference not in self._old:
                    raise EngineError(
                        f"The provider {reference} is neither in the program nor in state",
                        "Its resources cannot be handled",
                        "Declare it before the resources that use it",
                    )
                self._configure(reference, self._old[reference].inputs)
            return self._live[reference]

    def put(self, resource: ResourceState) -> None:
        """Makes a provider resource that stays as it is available to others."""
        with self._lock:
            reference = f"{resource.urn}::{resource.id}"
            if reference not in self._live:
                self._old[reference] = resource

    def _configure(self, reference: str, inputs: Properties) -> None:
        package = _package(_urn.provider_urn(reference))
        provider = self.package(package).configure(_without_internal(inputs))
        with self._lock:
            if stale := self._live.pop(reference, None):
                stale.close()
            self._live[reference] = provider

    def changed(self, old: ResourceState, new: ResourceState) -> bool:
        """Whether a provider's change of configuration means that its resources move."""
        return bool(
            self.package(_package(new.urn))
            .diff_config(_without_internal(old.inputs), _without_internal(new.inputs))
            .replaces
        )

    def check(self, call: Call) -> Checked:
        """Checks a provider resource."""
        checked = self.package(_package(call.urn)).check_config(_without_internal(call.inputs))
        if INTERNAL in call.inputs:
            checked.inputs[INTERNAL] = call.inputs[INTERNAL]
        return checked

    def diff(self, call: Call) -> Diff:
        """Compares a provider resource."""
        new = _without_internal(call.inputs)
        diff = self.package(_package(call.urn)).diff_config(_without_internal(call.old_inputs), new)
        if diff.changes is None:
            diff.changes = not equal(call.old_outputs, new)
        return diff

    def create(self, call: Call) -> tuple[str, Properties]:
        """Configures a new provider."""
        object_id = str(uuid.uuid4())
        self._configure(f"{call.urn}::{object_id}", call.inputs)
        return object_id, _without_internal(call.inputs)

    def update(self, call: Call) -> Properties:
        """Configures a provider anew."""
        self._configure(f"{call.urn}::{call.id}", call.inputs)
        return _without_internal(call.inputs)

    def delete(self, call: Call) -> None:
        """Ends a provider."""
        with self._lock:
            if provider := self._live.pop(f"{call.urn}::{call.id}", None):
                provider.close()

    def pending_id(self, call: Call) -> str:
        """A provider that was being configured left nothing behind; any id will do."""
        return _urn.name(call.urn)

    def close(self) -> None:
        """Ends all providers."""
        with self._lock:
            for provider in self._live.values():
                provider.close()
            self._live.clear()


def _package(urn: str) -> str:
    return _urn.kind(urn).removeprefix(_urn.PROVIDER_PREFIX)


def _without_internal(inputs: Properties) -> Properties:
    return {key: value for key, value in inputs.items() if key != INTERNAL}
