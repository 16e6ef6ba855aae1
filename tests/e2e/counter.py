"""A client that writes while something happens to the control plane."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fleetfoot.stack.inventory import API_PORTS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.stacks import Stack

_RETRY_SECONDS = 60.0
# About ten writes a second: more would take a good part of the CPU time that playbooks run in.
_PAUSE = 0.08
_HANDED_OVER = ("etcdserver: request timed out", "etcdserver: leader changed")
# Refusals that are answers: it is there; what it was to have before, it has not.
_ANSWERS = {"POST": HTTPStatus.CONFLICT, "PATCH": HTTPStatus.UNPROCESSABLE_ENTITY}


class Counter(threading.Thread):
    """A client that counts in an object while a `with` block runs.

    A request that fails is sent again, to the next load balancer: so a machine's resolver would do.
    Each write is made on the condition that the one before is there: one that was acknowledged and
    lost ends the counting, and leaving the block says so.

    Args:
        pki: Folder of authorities and of the identities' certificates.
        fronts: Addresses of the load balancers.
        group: Which apiservers it asks.
        identity: Whose certificate it shows, a folder of `pki`.

    Attributes:
        acknowledged: The last number that the apiserver confirmed.
        failed: Errors of single requests, which were sent again.
    """

    def __init__(
        self, pki: Path, fronts: list[str], group: str = "online", identity: str = "operator"
    ) -> None:
        super().__init__(daemon=True)
        self._context = ssl.create_default_context(cafile=str(pki / "kubernetes" / "ca.crt"))
        self._context.load_cert_chain(pki / identity / "client.crt", pki / identity / "client.key")
        self._fronts = [f"https://{front}:{API_PORTS[group]}" for front in fronts]
        self._namespace = "offline" if group == "offline" else "default"
        self._done = threading.Event()
        self.acknowledged = 0
        self.failed: list[str] = []
        self.broken: Exception | None = None

    def __enter__(self) -> Counter:
        made = self._send("POST", "", {"metadata": {"name": "counter"}, "data": {"count": "0"}})
        if made is None:  # a killed test left it
            self.acknowledged = self.stored()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()
        try:
            assert self.broken is None, self.broken
            assert self.stored() >= self.acknowledged > 0
        finally:
            self._send("DELETE", "/counter")

    @property
    def turned_away(self) -> list[str]:
        """What failed, but for writes that raft dropped while etcd's leader handed over."""
        return [told for told in self.failed if not any(why in told for why in _HANDED_OVER)]

    def stored(self) -> int:
        """Return the number that the object has."""
        return int(self._send("GET", "/counter")["data"]["count"])

    def run(self) -> None:
        try:
            while not self._done.wait(_PAUSE):
                self._count(self.acknowledged + 1)
        except Exception as broken:  # told when the block ends
            self.broken = broken

    def _count(self, count: int) -> None:
        """Write the next number where the last one stands."""
        place = {"path": "/data/count"}
        steps = [
            {"op": "test", **place, "value": str(count - 1)},
            {"op": "replace", **place, "value": str(count)},
        ]
        # One that was sent again may have been taken the first time, unheard.
        if self._send("PATCH", "/counter", steps) is None and self.stored() != count:
            raise AssertionError(f"{count - 1} was acknowledged, and {self.stored()} is stored")
        self.acknowledged = count

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        deadline = time.monotonic() + _RETRY_SECONDS
        while True:
            for front in self._fronts:
                try:
                    return self._ask(front, method, path, body)
                except urllib.error.HTTPError as refused:
                    with refused:
                        if refused.code == _ANSWERS.get(method):
                            return None
                        last = f"{refused.code} {refused.read(200)!r}"
                except (OSError, http.client.HTTPException) as failed:
                    last = repr(failed)
                self.failed.append(f"{time.strftime('%X')} {method} {front}: {last}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer within {_RETRY_SECONDS} s: {last}")
            time.sleep(_PAUSE)

    def _ask(self, front: str, method: str, path: str, body: Any) -> Any:
        kind = "application/json-patch+json" if method == "PATCH" else "application/json"
        url = f"{front}/api/v1/namespaces/{self._namespace}/configmaps{path}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url, data, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request, context=self._context, timeout=10) as reply:
            return json.load(reply)


def counting(stack: Stack, group: str = "online", identity: str = "operator") -> Counter:
    """Return a client of a stack with two load balancers; it asks the next when one is silent."""
    fronts = [stack.machine(name)["address"] for name in ("control-1", "control-2")]
    return Counter(stack.paths.root / "pki", fronts, group, identity)
