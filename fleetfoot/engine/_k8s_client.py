"""A cluster, through the official client's dynamic client."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, Final

import kubernetes.config
import kubernetes.dynamic
import urllib3
import yaml
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic.exceptions import DynamicApiError, ResourceNotFoundError
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError

from fleetfoot.engine._errors import ProviderError
from fleetfoot.engine._k8s_objects import Object, metadata, name_of, namespace_of
from fleetfoot.engine._k8s_ready import Failed, ready
from fleetfoot.engine._values import Properties, reveal

# Neither module has types.
_config: Any = kubernetes.config
_dynamic: Any = kubernetes.dynamic
_CONFLICT: Final = 409
_NOT_FOUND: Final = 404
_APPLY: Final = "application/apply-patch+yaml"


# SYNs sent again (1, 2 and 4 s apart), and how long what was sent may stay unacknowledged, in ms.
_SILENCE = [
    (socket.IPPROTO_TCP, socket.TCP_SYNCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
]
# A load balancer may keep a connection whose server is gone. Servers answer within 60 s.
_PATIENCE = urllib3.Timeout(connect=10, read=65)


def _bound(pools: urllib3.PoolManager) -> None:
    """Gives every request a time limit, which the client's own discovery has not."""
    request = pools.request

    def bounded(*arguments: Any, **options: Any) -> urllib3.BaseHTTPResponse:
        return request(*arguments, **{**options, "timeout": options.get("timeout") or _PATIENCE})

    # The client gives each call a time limit of its own, None, which wins over the pools' default.
    pools.request = bounded  # type: ignore[method-assign]


class Unreachable(ProviderError):  # noqa: N818
    """The cluster does not answer."""


class Refused(ProviderError):  # noqa: N818
    """The API server says no.

    Args:
        status: The HTTP status.
        message: What it says.
    """

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def parse_kubeconfig(value: Any) -> Object:
    """A kubeconfig given as text, as an object or as the path of a file."""
    plain = reveal(value)
    if isinstance(plain, dict):
        return plain
    text = str(plain or "")
    if "\n" not in text and not text.startswith("{"):
        path = Path(text or os.environ.get("KUBECONFIG", "~/.kube/config")).expanduser()
        text = path.read_text() if path.is_file() else text
    document = yaml.safe_load(text) if text else {}
    return document if isinstance(document, dict) else {}


class Cluster:
    """Reads and writes objects.

    Args:
        inputs: The provider resource's inputs: kubeconfig, context, namespace.
        stopped: Set when waiting is to end early.
    """

    def __init__(self, inputs: Properties, stopped: threading.Event) -> None:
        document = parse_kubeconfig(inputs.get("kubeconfig"))
        context = reveal(inputs.get("context"))
        if not document.get("clusters"):
            raise ProviderError("the kubeconfig names no cluster; give the kubernetes provider one")
        client = _config.new_client_from_config_dict(
            document, context=str(context) if context else None, persist_config=False
        )
        # A machine that is gone says nothing: without these a connect takes two minutes to fail.
        pool = client.rest_client.pool_manager.connection_pool_kw
        pool["retries"] = False
        pool["socket_options"] = [*HTTPConnection.default_socket_options, *_SILENCE]
        _bound(client.rest_client.pool_manager)
        self._lock = threading.Lock()
        try:
            # A discovery cache could be stale or another user's; no file can be where this one is.
            self._dynamic: Any = _dynamic.DynamicClient(client, cache_file=f"{os.devnull}/none")
        except (HTTPError, OSError, ApiException) as error:
            raise _silent(error) from error
        self._client = client
        self._stopped = stopped

    def close(self) -> None:
        """Forgets the cluster."""
        self._client.close()

    def resource(self, obj: Object) -> Any:
        """The API resource of an object."""
        version, kind = str(obj.get("apiVersion")), str(obj.get("kind"))
        with self._lock:
            try:
                return self._dynamic.resources.get(api_version=version, kind=kind)
            except ResourceNotFoundError as error:
                raise Refused(_NOT_FOUND, f"the server knows no {version} {kind}") from error
            except (HTTPError, OSError, ApiException) as error:
                raise _silent(error) from error

    def is_namespaced(self, obj: Object) -> bool:
        """Whether objects of this kind live in namespaces; yes, if the server cannot say."""
        try:
            return bool(self.resource(obj).namespaced)
        except ProviderError:
            return True

    def forget_kinds(self) -> None:
        """Makes new kinds known, after a CustomResourceDefinition."""
        with self._lock:
            self._dynamic.resources.invalidate_cache()

    def read(self, obj: Object) -> Object | None:
        """The live object, or None."""
        try:
            resource = self.resource(obj)
            return self._do(resource.get, name=name_of(obj), namespace=self._namespace(obj))
        except Refused as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    def get(self, api_version: str, kind: str, name: str, namespace: str) -> Object | None:
        """An object, or None."""
        return self.read(
            {
                "apiVersion": api_version,
                "kind": kind,
                "metadata": {"name": name, "namespace": namespace},
            }
        )

    def select(self, api_version: str, kind: str, namespace: str, selector: str) -> list[Object]:
        """The objects that a label selector names."""
        resource = self.resource({"apiVersion": api_version, "kind": kind})
        found = self._do(resource.get, namespace=namespace or None, label_selector=selector)
        return list(found.get("items") or ())

    def apply(self, obj: Object, manager: str, *, force: bool, dry_run: bool = False) -> Object:
        """Server-side apply."""
        resource = self.resource(obj)
        return self._do(
            self._dynamic.patch,
            resource,
            body=obj,
            name=name_of(obj),
            namespace=self._namespace(obj),
            content_type=_APPLY,
            field_manager=manager,
            force_conflicts=force,
            **({"dry_run": "All"} if dry_run else {}),
        )

    def delete(self, obj: Object, propagation: str) -> bool:
        """Asks for the object's end; False if it is not there."""
        try:
            self._do(
                self.resource(obj).delete,
                name=name_of(obj),
                namespace=self._namespace(obj),
                body={
                    "kind": "DeleteOptions",
                    "apiVersion": "v1",
                    "propagationPolicy": propagation,
                },
            )
        except Refused as error:
            if error.status != _NOT_FOUND:
                raise
            return False
        return True

    def await_ready(self, obj: Object, timeout: float) -> tuple[Object, list[str]]:
        """Waits until the object is ready.

        Returns:
            The object, and what it lacks if it did not become ready in time.
        """
        live, missing = obj, ""
        for _ in self._ticks(timeout):
            live = self.read(obj) or live
            try:
                missing = ready(live, self)
            except Failed as error:
                return live, [str(error)]
            if not missing:
                return live, []
        return live, [missing or "the run was interrupted"]

    def await_gone(self, obj: Object, timeout: float) -> bool:
        """Waits until the object is no more, or is another one of its name."""
        uid = metadata(obj).get("uid")
        for _ in self._ticks(timeout):
            live = self.read(obj)
            if live is None or (uid and metadata(live).get("uid") != uid):
                return True
        return False

    def _ticks(self, timeout: float) -> Any:
        """Yields now and then until the time is over; ever more seldom, at most once a second."""
        deadline, pause = time.monotonic() + timeout, 0.05
        while True:
            yield
            if time.monotonic() >= deadline or self._stopped.wait(pause):
                return
            pause = min(pause * 1.5, 1.0)

    def _namespace(self, obj: Object) -> str | None:
        if not self.resource(obj).namespaced:
            return None
        return namespace_of(obj) or "default"

    def _do(self, call: Any, *args: Any, **kwargs: Any) -> Object:
        try:
            return dict(call(*args, **kwargs).to_dict())
        except DynamicApiError as error:
            raise Refused(int(error.status or 0), _message(error)) from error
        except (HTTPError, OSError, ApiException) as error:
            raise _silent(error) from error


def _silent(error: Exception) -> ProviderError:
    """What to say of a call without an answer; the client tells broken TLS as status 0."""
    if isinstance(error, ApiException) and error.status:
        return Refused(int(error.status), _message(error))
    reason = error.reason if isinstance(error, ApiException) else error
    return Unreachable(f"the cluster does not answer: {reason}")


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"


def is_conflict(error: Refused) -> bool:
    """Whether another field manager is in the way."""
    return error.status == _CONFLICT


def is_missing(error: Refused) -> bool:
    """Whether the kind, the namespace or the object is not there."""
    return error.status == _NOT_FOUND
