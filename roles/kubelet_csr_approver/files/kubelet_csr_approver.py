#!/usr/bin/python3
"""Approve kubelet serving certificates that name only the node itself.

A kubelet asks the cluster's authority for its serving certificate through the certificates API.
Kubernetes leaves the decision to the operator: a node could ask for any name. This daemon approves a
request when the node itself asks, for exactly the usages of a server, and for no names or addresses
but those that its Node object has. All else is left alone, for a person to see.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import http.client
import ipaddress
import json
import os
import socket
import ssl
import sys
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

SIGNER = "kubernetes.io/kubelet-serving"
USER_PREFIX = "system:node:"
GROUP = "system:nodes"
# The apiserver's own check allows leaving "key encipherment" out, which EC keys do.
USAGES = ({"digital signature", "server auth"}, {"digital signature", "key encipherment", "server auth"})
REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
# Kubelets ask for a certificate before their Node object has all addresses; look again so often.
AGAIN_SECONDS = 2
WATCH_SECONDS = 300


def refusal(request: dict[str, Any], node: dict[str, Any] | None) -> str:
    """Say why a request is not approved; empty when it may be.

    Args:
        request: The CertificateSigningRequest.
        node: The Node object named by the requester; None when there is none.
    """
    spec = request["spec"]
    user = spec.get("username", "")
    name = user.removeprefix(USER_PREFIX)
    if not user.startswith(USER_PREFIX) or not name:
        return f"requested by {user!r}, which is no node"
    if GROUP not in spec.get("groups", []):
        return f"the requester is not in group {GROUP}"
    if set(spec.get("usages", [])) not in USAGES:
        return f"usages {sorted(spec.get('usages', []))} are not those of a server"
    if node is None or node["metadata"]["name"] != name:
        return f"there is no node {name!r}"
    try:
        return _contents_refusal(base64.b64decode(spec["request"]), name, node)
    except (ValueError, KeyError) as unreadable:
        return f"the request cannot be read: {unreadable}"


def _contents_refusal(pem: bytes, name: str, node: dict[str, Any]) -> str:
    asked = x509.load_pem_x509_csr(pem)
    if not asked.is_signature_valid:
        return "the request is not signed by its own key"
    common_names = [str(a.value) for a in asked.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    groups = [str(a.value) for a in asked.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    if common_names != [f"{USER_PREFIX}{name}"] or groups != [GROUP] or len(list(asked.subject)) != 2:  # noqa: PLR2004
        return f"the subject {asked.subject.rfc4514_string()!r} is not the requester"
    try:
        alternatives = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "it names no address"
    addresses = node.get("status", {}).get("addresses", [])
    own_names = {a["address"] for a in addresses if a["type"] in ("Hostname", "InternalDNS", "ExternalDNS")}
    own_ips = {
        ipaddress.ip_address(a["address"]) for a in addresses if a["type"] in ("InternalIP", "ExternalIP")
    }
    for alternative in alternatives:
        known = (isinstance(alternative, x509.DNSName) and alternative.value in own_names) or (
            isinstance(alternative, x509.IPAddress) and alternative.value in own_ips
        )
        if not known:
            return f"{alternative.value} is no address of node {name}"
    return "" if len(alternatives) else "it names no address"  # type: ignore[arg-type]


def is_open(request: dict[str, Any]) -> bool:
    """Whether a request is for this daemon and nobody has decided it."""
    return request["spec"].get("signerName") == SIGNER and not request.get("status", {}).get("conditions")


class Api:
    """The apiserver, with the daemon's own certificate."""

    def __init__(self, server: str, authority: str, certificate: str, key: str) -> None:
        parts = urllib.parse.urlsplit(server)
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._files = (authority, certificate, key)

    def _connect(self, timeout: float) -> http.client.HTTPSConnection:
        # Read anew each time: certificates are renewed.
        authority, certificate, key = self._files
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(certificate, key)
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=context)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """One request; status and decoded answer."""
        connection = self._connect(30)
        try:
            data = json.dumps(body) if body is not None else None
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            return response.status, answer
        finally:
            connection.close()

    def watch(self, version: str) -> Iterator[dict[str, Any]]:
        """Changes of requests since a version, until the apiserver ends the stream."""
        query = urllib.parse.urlencode(
            {
                "watch": "1",
                "resourceVersion": version,
                "timeoutSeconds": WATCH_SECONDS,
                "fieldSelector": f"spec.signerName={SIGNER}",
            }
        )
        # Wakes up now and then, to look again at what waits for a Node's addresses.
        connection = self._connect(AGAIN_SECONDS)
        try:
            connection.request("GET", f"{REQUESTS}?{query}")
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise ConnectionError(f"watching answered {response.status}")
            buffer = b""
            while True:
                try:
                    block = response.read1(65536)
                except TimeoutError:
                    yield {"type": "QUIET"}
                    # A socket that timed out cannot be read on; the version tells where to go on.
                    return
                if not block:
                    return
                *lines, buffer = (buffer + block).split(b"\n")
                yield from (json.loads(line) for line in lines if line.strip())
        finally:
            connection.close()


def decide(api: Api, request: dict[str, Any], told: dict[str, str]) -> bool:
    """Approve a request if it may be; return whether it is settled."""
    name = request["metadata"]["name"]
    user = request["spec"].get("username", "")
    node_name = urllib.parse.quote(user.removeprefix(USER_PREFIX) or "-", safe="")
    status, node = api.call("GET", f"/api/v1/nodes/{node_name}")
    why = refusal(request, node if status == http.HTTPStatus.OK else None)
    if why:
        if told.get(name) != why:
            print(f"{name}: not approved: {why}", flush=True)
            told[name] = why
        return False
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    request.setdefault("status", {})["conditions"] = [
        {
            "type": "Approved",
            "status": "True",
            "reason": "NodeAsksForItself",
            "message": "names and addresses are those of the node",
            "lastUpdateTime": now.replace("+00:00", "Z"),
        }
    ]
    status, answer = api.call("PUT", f"{REQUESTS}/{urllib.parse.quote(name)}/approval", request)
    if status == http.HTTPStatus.OK:
        print(f"{name}: approved for {user}", flush=True)
        return True
    print(f"{name}: approval answered {status}: {answer.get('message', '')}", flush=True)
    return status in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.CONFLICT)


def tell_systemd(state: str) -> None:
    """Report to systemd (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        notify.send(state.encode())


def serve(api: Api) -> None:
    """List, then follow; what is not approved is looked at again, for its node may grow addresses."""
    told: dict[str, str] = {}
    query = urllib.parse.urlencode({"fieldSelector": f"spec.signerName={SIGNER}"})
    status, listed = api.call("GET", f"{REQUESTS}?{query}")
    if status != http.HTTPStatus.OK:
        raise ConnectionError(f"listing answered {status}: {listed.get('message', '')}")
    tell_systemd("READY=1")
    version = listed["metadata"]["resourceVersion"]
    waiting = {r["metadata"]["name"]: r for r in listed["items"] if is_open(r)}
    while True:
        for name in [name for name, request in waiting.items() if decide(api, request, told)]:
            del waiting[name]
        for event in api.watch(version):
            if event["type"] == "ERROR":
                return
            if event["type"] == "QUIET":
                if waiting:
                    break
                continue
            request = event["object"]
            version = request["metadata"]["resourceVersion"]
            name = request["metadata"]["name"]
            if event["type"] == "DELETED" or not is_open(request):
                waiting.pop(name, None)
                told.pop(name, None)
            elif not decide(api, request, told):
                waiting[name] = request


def main() -> None:
    """Run until stopped; an apiserver that is away comes back."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("server", "authority", "certificate", "key"):
        parser.add_argument(f"--{option}", required=True)
    arguments = parser.parse_args()
    api = Api(arguments.server, arguments.authority, arguments.certificate, arguments.key)
    while True:
        try:
            serve(api)
        except (OSError, http.client.HTTPException, ValueError) as away:
            print(f"the apiserver is away: {away}", file=sys.stderr, flush=True)
            time.sleep(1)


if __name__ == "__main__":
    main()
