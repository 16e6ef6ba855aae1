"""A registry that can be made to misbehave; the real one stands in the end-to-end tests."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import ssl
import threading
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetfoot.lazyfs.distribution import INDEX, Access, Repository
from tests.unit.tls import certificate

__all__ = ["Registry"]


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Registry:
    """Serves one repository, `image`, over TLS on loopback.

    Attributes:
        folder: Where its certificate goes.
        referrers: Whether it has the referrers API.
        accepts: `Authorization` that it lets in; everybody where empty.
        realm: Where it sends those that it does not let in for a token; basic where empty.
        tokens: What its own place for tokens gives, by `Authorization`.
        elsewhere: Address that blobs are at; here where empty.
        status: Status that it answers requests for blobs with, instead of them.
        drop: How many requests it answers by closing the connection.
        keeps: Whether it refuses to remove manifests.
        ranges: Whether it gives a part of a blob, and not always the whole.
    """

    folder: Path
    referrers: bool = True
    accepts: str = ""
    realm: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    elsewhere: str = ""
    status: int = 0
    drop: int = 0
    keeps: bool = False
    ranges: bool = True
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    seen: list[tuple[str, str, str]] = field(default_factory=list)

    def __enter__(self) -> Registry:
        shown, key = certificate("127.0.0.1")
        self.authority = self.folder / "registry.crt"
        self.authority.write_bytes(shown)
        (pair := self.folder / "registry.pem").write_bytes(shown + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair)
        handler = type("Handler", (_Handler,), {"registry": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"https://{self.host}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def repository(self, authorization: Any = lambda: "") -> Repository:
        """Return a client of it."""
        return Repository(Access(self.url, self.authority, authorization), "image")

    def add(self, data: bytes) -> str:
        """Hold a blob; return its digest."""
        self.blobs[digest(data)] = data
        return digest(data)


class _Handler(http.server.BaseHTTPRequestHandler):
    registry: Registry
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        registry, path = self.registry, urllib.parse.urlsplit(self.path)
        shown = self.headers.get("Authorization", "")
        registry.seen.append((self.command, self.path, shown))
        if registry.drop:
            registry.drop -= 1
            self.close_connection = True
            self.connection.close()
            return
        if path.path == "/token":
            token = registry.tokens.get(shown)
            self._say(200 if token else 401, json.dumps({"token": token}).encode())
            return
        if registry.accepts and shown != registry.accepts:
            basic = 'Basic realm="registry"'
            bearer = f'Bearer realm="{registry.realm}",service="here",scope="repository:image:pull"'
            challenge = bearer if registry.realm else basic
            self._say(401, b"who are you?", {"WWW-Authenticate": challenge})
            return
        self._serve(path.path)

    def _serve(self, path: str) -> None:
        registry = self.registry
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind, _, name = path.removeprefix("/v2/image/").partition("/")
        if self.command == "POST":
            self._say(202, b"", {"Location": "/v2/image/blobs/uploads/1?state=a"})
        elif self.command == "PUT" and kind == "blobs":
            registry.add(body)
            self._say(201, b"")
        elif self.command == "PUT":
            self._put(name, body)
        elif self.command == "DELETE":
            if not registry.keeps:
                registry.manifests.pop(name, None)
            self._say(405 if registry.keeps else 202, b"")
        elif kind == "blobs" and registry.status:
            self._say(registry.status, b"no")
        elif kind == "blobs" and registry.elsewhere:
            self._say(307, b"", {"Location": f"{registry.elsewhere}{self.path}"})
        elif kind == "blobs" and name in registry.blobs:
            self._blob(registry.blobs[name])
        elif kind == "manifests" and name in registry.manifests:
            data, media = registry.manifests[name]
            self._say(200, data, {"Content-Type": media})
        elif kind == "referrers" and registry.referrers:
            listed = [
                {**json.loads(data), "mediaType": media, "digest": each, "size": len(data)}
                for each, (data, media) in registry.manifests.items()
                if json.loads(data).get("subject", {}).get("digest") == name
                and each.startswith("sha256:")
            ]
            self._say(200, json.dumps({"manifests": listed}).encode(), {"Content-Type": INDEX})
        else:
            self._say(404, b"not here")

    def _put(self, name: str, body: bytes) -> None:
        media = self.headers["Content-Type"]
        for each in (name, digest(body)):
            self.registry.manifests[each] = (body, media)
        has = self.registry.referrers and "subject" in json.loads(body)
        self._say(201, b"", {"OCI-Subject": json.loads(body)["subject"]["digest"]} if has else {})

    def _blob(self, data: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and self.registry.ranges:
            self._say(206, data[int(wanted[1]) : int(wanted[2]) + 1])
        else:
            self._say(200, data)

    def _say(self, status: int, body: bytes, header: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (header or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
