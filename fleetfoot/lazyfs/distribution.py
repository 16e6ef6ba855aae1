"""A client of registries, as far as lazy images need one: ranges of blobs, manifests, referrers.

Speaks the OCI distribution specification over HTTP/1.1 with connections that are kept. Registries
are described the way containerd's `certs.d` does (hosts.toml), so that a node has one description
for both.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import io
import json
import os
import re
import ssl
import threading
import tomllib
import urllib.parse
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetfoot.errors import FleetfootError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "INDEX",
    "INDEXES",
    "MANIFEST",
    "MANIFESTS",
    "AbsentError",
    "Access",
    "Answer",
    "Reference",
    "Repository",
    "UnreachableError",
    "manifests_of",
    "repositories",
]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
INDEXES = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
"""Media types of what lists manifests: OCI's, and Docker's before it."""
MANIFESTS = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json", *INDEXES)
"""Media types of all that a tag may name."""
_LARGEST_MANIFEST = 4 << 20  # bytes; the specification's advice to registries
_LARGEST_ANSWER = 1 << 20  # bytes of what is neither a manifest nor a blob
_TIMEOUT = 20.0  # seconds without a byte
_PAGES = 50  # of a list of referrers
# How a connection ends that was kept for too long.
_CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
_REDIRECTS = 5
_REDIRECTED = (301, 302, 303, 307, 308)
_OK, _PARTIAL, _UNAUTHORIZED, _NOT_FOUND, _TOO_MANY, _FAILED = 200, 206, 401, 404, 429, 500
_TAKEN = {200, 201, 202, 204, 206}
_NO_API = {400, 404, 405}  # how registries before the referrers API answer it
_SAID = 300  # bytes of an answer that a message repeats
_READ_ON = 64 << 10  # bytes that are read on to keep a connection, instead of closing it
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REFERENCE = re.compile(
    r"(?P<host>[A-Za-z0-9.-]+(:[0-9]+)?)/(?P<name>[a-z0-9]+([._/-]+[a-z0-9]+)*)"
    r"(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)


class UnreachableError(FleetfootError):
    """The registry did not answer, or said that it cannot right now: trying again may help."""


class AbsentError(FleetfootError):
    """The registry does not have it."""


@dataclass(frozen=True)
class Reference:
    """The name of an image: `host/name:tag`, `host/name@sha256:...`, or both.

    Attributes:
        host: Registry, with its port where one is named.
        name: Repository within it.
        tag: Tag; `latest` where neither it nor a digest is named.
        digest: Digest of the manifest, or nothing.
    """

    host: str
    name: str
    tag: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference.

        Raises:
            FleetfootError: It is none.
        """
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise FleetfootError(
                f"{text!r} is no reference of an image",
                "nothing was read",
                "write HOST[:PORT]/NAME:TAG or HOST[:PORT]/NAME@sha256:DIGEST",
            )
        tag, digest = found["tag"] or "", found["digest"] or ""
        return cls(found["host"], found["name"], tag or ("" if digest else "latest"), digest)

    @property
    def wanted(self) -> str:
        """What a registry is asked for: the digest where there is one."""
        return self.digest or self.tag

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.host}/{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")


@dataclass(frozen=True)
class Access:
    """How a registry is reached, and as whom.

    Attributes:
        url: Address of the registry, `https://host:port`.
        authority: File with the certificates of its authority; the system's where there is none.
        authorization: Returns the `Authorization` of a first request; called again when it was
            turned down, so that a file that was renewed since is read anew.
    """

    url: str
    authority: Path | None = None
    authorization: Callable[[], str] = field(default=lambda: "")

    @classmethod
    def of_containerd(cls, folder: Path, host: str) -> Access:
        """Read `<folder>/<host>/hosts.toml`, containerd's description of a registry.

        Raises:
            FleetfootError: It cannot be read.
        """
        path = folder / host / "hosts.toml"
        if not path.exists():
            return cls(f"https://{host}")
        described = _hosts(path)
        url, settings = _first(described, host)
        authority = settings.get("ca")
        if isinstance(authority, list):
            authority = authority[0] if authority else None

        def authorization() -> str:
            header = _first(_hosts(path), host)[1].get("header", {})
            named = {key.lower(): value for key, value in header.items()}.get("authorization", "")
            return str(named[0] if isinstance(named, list) else named)

        return cls(url, Path(authority) if authority else None, authorization)

    @classmethod
    def of_docker(cls, auth: Path, host: str, authority: Path | None = None) -> Access:
        """Read a credential from a file of `docker login` or `skopeo login` (auth.json)."""

        def authorization() -> str:
            known = json.loads(auth.read_text()).get("auths", {}) if auth.exists() else {}
            basic = known.get(host, {}).get("auth", "")
            return f"Basic {basic}" if basic else ""

        return cls(f"https://{host}", authority, authorization)


def _hosts(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise FleetfootError(
            f"{path} cannot be read: {error}", "its registry is not asked", "mend the file"
        ) from error


def _first(described: dict[str, Any], host: str) -> tuple[str, dict[str, Any]]:
    hosts: dict[str, dict[str, Any]] = described.get("host", {})
    for url, settings in hosts.items():
        return url, settings
    return f"https://{host}", {}


@functools.lru_cache(maxsize=64)
def _trusting(authority: Path, _inode: int, _changed: int) -> ssl.SSLContext:
    """Return what trusts an authority alone, read once for as long as its file is the same."""
    return ssl.create_default_context(cafile=str(authority))


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_ino, found.st_mtime_ns


@dataclass(frozen=True)
class Answer:
    """What a registry answered: status, header (lower case), body."""

    status: int
    header: Mapping[str, str]
    body: bytes


class Repository:
    """One repository of a registry. Threads may share it; each request has its own connection."""

    def __init__(self, access: Access, name: str, *, timeout: float = _TIMEOUT) -> None:
        self._access, self._name, self._timeout = access, name, timeout
        self._authorization = access.authorization()
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._idle)
        split = urllib.parse.urlsplit(access.url)
        if split.scheme not in {"https", "http"} or not split.netloc:
            raise FleetfootError(f"{access.url!r} is no address of a registry", "it is not asked")
        self._origin = (split.scheme, split.netloc)
        self._context: ssl.SSLContext | None = None
        self._others: ssl.SSLContext | None = None
        if split.scheme == "https":
            # Its own authority alone where it has one: the system's take a node long to read.
            self._context = (
                _trusting(access.authority, *_stamp(access.authority))
                if access.authority
                else ssl.create_default_context()
            )

    # What is asked

    def manifest(self, wanted: str) -> tuple[bytes, str]:
        """Return a manifest or an index by tag or digest, and its media type.

        Raises:
            AbsentError: There is none.
            FleetfootError: It is not what its digest says, or the registry refuses.
        """
        accept = {"Accept": ", ".join(MANIFESTS)}
        asked = self._ask("GET", f"manifests/{wanted}", accept, largest=_LARGEST_MANIFEST)
        answer = self._found(asked, wanted)
        digest = "sha256:" + hashlib.sha256(answer.body).hexdigest()
        if _DIGEST.fullmatch(wanted) and digest != wanted:
            raise FleetfootError(f"{self}: what came for {wanted} is {digest}", "it is not used")
        return answer.body, answer.header.get("content-type", MANIFEST).split(";")[0]

    def referrers(self, digest: str, kind: str) -> list[dict[str, Any]]:
        """Return descriptors of artifacts of one type that are attached to a manifest.

        Asks the referrers API and, where the registry has none, the tag that stands in for it.
        """
        page, listed = f"referrers/{digest}?artifactType={kind}", list[dict[str, Any]]()
        for _ in range(_PAGES):
            answer = self._ask("GET", page, {"Accept": INDEX}, largest=_LARGEST_MANIFEST)
            is_index = answer.header.get("content-type", "").split(";")[0] == INDEX
            if answer.status in _NO_API or (answer.status == _OK and not is_index):
                try:
                    return _of(kind, self.manifest(digest.replace(":", "-"))[0])
                except AbsentError:
                    return []
            listed += _of(kind, self._found(answer, digest).body)
            page = _next_page(answer)
            if not page:
                return listed
        raise FleetfootError(f"{self} lists no end of what belongs to {digest}", "it is not used")

    def tags(self) -> list[str]:
        """Return the names of its images."""
        try:
            return list(self._listed("tags/list?n=1000", "tags"))
        except AbsentError:  # it has had some
            return []

    def blob(self, digest: str, largest: int) -> bytes:
        """Return a whole blob of at most `largest` bytes, verified.

        Raises:
            AbsentError: There is none.
            FleetfootError: It is larger, or not what its digest says.
        """
        data = self._found(self._ask("GET", f"blobs/{digest}", {}, largest=largest), digest).body
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise FleetfootError(f"{self}: what came for {digest} is not that", "it is not used")
        return data

    def range(self, digest: str, offset: int, count: int) -> bytes:
        """Return `count` bytes of a blob from `offset` on, unverified.

        Raises:
            UnreachableError: The registry is away.
            FleetfootError: It gave something else, or refuses.
        """
        wanted = {"Range": f"bytes={offset}-{offset + count - 1}"}
        answer = self._found(self._ask("GET", f"blobs/{digest}", wanted, largest=count), digest)
        if answer.status != _PARTIAL or len(answer.body) != count:
            raise FleetfootError(
                f"{self}: {len(answer.body)} bytes came for {count} of {digest}",
                "they are not used",
            )
        return answer.body

    @contextlib.contextmanager
    def stream(self, digest: str) -> Iterator[http.client.HTTPResponse]:
        """Open a blob to read it piece by piece, unverified."""
        with self._open("GET", f"blobs/{digest}", {}) as response:
            if response.status != _OK:
                said = response.read(_SAID)
                raise self._refusal(Answer(response.status, {}, said), digest)
            yield response

    # What is given

    def has(self, digest: str) -> bool:
        """Whether the registry holds a blob."""
        return self._ask("HEAD", f"blobs/{digest}", {}).status == _OK

    def put_blob(self, content: Path | bytes, digest: str) -> None:
        """Push a blob from a file or from memory, unless it is there.

        Raises:
            FleetfootError: The registry refuses.
        """
        if self.has(digest):
            return
        begun = self._taken(self._ask("POST", "blobs/uploads/", {"Content-Length": "0"}), digest)
        where = urllib.parse.urlsplit(urllib.parse.urljoin(self._access.url, begun["location"]))
        query = urllib.parse.urlencode([*urllib.parse.parse_qsl(where.query), ("digest", digest)])
        held = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
        with held as body:
            header = {
                "Content-Length": str(body.seek(0, os.SEEK_END)),
                "Content-Type": "application/octet-stream",
            }
            body.seek(0)
            target = urllib.parse.urlunsplit(where._replace(query=query))
            self._taken(self._ask("PUT", target, header, body), digest)

    def remove_manifest(self, digest: str) -> None:
        """Remove a manifest, where the registry lets us."""
        self._ask("DELETE", f"manifests/{digest}", {})

    def put_manifest(self, body: bytes, name: str, kind: str = MANIFEST) -> Mapping[str, str]:
        """Push a manifest or an index under a tag or its digest; return what the registry said.

        Raises:
            FleetfootError: The registry refuses.
        """
        header = {"Content-Type": kind, "Content-Length": str(len(body))}
        return self._taken(self._ask("PUT", f"manifests/{name}", header, body), name)

    # How

    def _listed(self, page: str, key: str) -> Iterator[str]:
        while page:
            answer = self._found(self._ask("GET", page, {}, largest=_LARGEST_MANIFEST), key)
            try:
                listed = json.loads(answer.body).get(key) or []
            except (ValueError, AttributeError) as error:
                raise FleetfootError(
                    f"{self} gives no list of its {key}", "none is used"
                ) from error
            yield from (each for each in listed if isinstance(each, str))
            page = _next_page(answer)

    def __str__(self) -> str:
        return f"{self._origin[1]}/{self._name}"

    def _found(self, answer: Answer, what: str) -> Answer:
        if answer.status not in {_OK, _PARTIAL}:
            raise self._refusal(answer, what)
        return answer

    def _taken(self, answer: Answer, what: str) -> Mapping[str, str]:
        if answer.status not in _TAKEN:
            raise self._refusal(answer, what)
        return answer.header

    def _refusal(self, answer: Answer, what: str) -> FleetfootError:
        if answer.status == _NOT_FOUND:
            return AbsentError(f"{self} has no {what}")
        said = answer.body[:_SAID].decode(errors="replace").strip()
        told = f"{self} answered {answer.status} for {what}: {said}"
        if answer.status >= _FAILED or answer.status == _TOO_MANY:
            return UnreachableError(told)
        return FleetfootError(told)

    def _ask(
        self,
        method: str,
        path: str,
        header: dict[str, str],
        body: Any = None,
        *,
        largest: int = _LARGEST_ANSWER,
    ) -> Answer:
        with self._open(method, path, header, body) as response:
            named = {key.lower(): value for key, value in response.getheaders()}
            try:
                if response.status not in _TAKEN:
                    return Answer(response.status, named, response.read(_SAID))
                data = response.read(largest + 1)
            except (OSError, http.client.HTTPException) as error:
                raise UnreachableError(f"{self} broke off: {error!r}") from error
            if response.length and len(data) <= largest:
                raise UnreachableError(f"{self} broke off after {len(data)} bytes")
            if len(data) > largest:
                raise FleetfootError(
                    f"{self} gives more than the {largest} bytes that were asked for ({path})",
                    "they are not used",
                )
            return Answer(response.status, named, data)

    @contextlib.contextmanager
    def _open(
        self, method: str, path: str, header: dict[str, str], body: Any = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Ask once; again with a new credential, at another address, on a new connection."""
        target = urllib.parse.urljoin(f"{self._access.url}/v2/{self._name}/", path)
        renewed, redirects = False, 0
        while True:
            split = urllib.parse.urlsplit(target)
            origin = (split.scheme, split.netloc)
            mine = {"Authorization": self._authorization} if origin == self._origin else {}
            if not self._authorization:
                mine = {}
            where = urllib.parse.urlunsplit(("", "", split.path, split.query, ""))
            connection, response = self._send(origin, method, where, {**header, **mine}, body)
            if response.status == _UNAUTHORIZED and not renewed and origin == self._origin:
                self._give_back(origin, connection, response)
                renewed = True
                self._authorization = self._renewed(response.getheader("WWW-Authenticate", ""))
                _rewind(body)
                continue
            if response.status in _REDIRECTED and redirects < _REDIRECTS:
                self._give_back(origin, connection, response)
                redirects += 1
                target = urllib.parse.urljoin(target, response.getheader("Location", ""))
                _rewind(body)
                continue
            break
        try:
            yield response
        finally:
            self._give_back(origin, connection, response)

    def _send(
        self, origin: tuple[str, str], method: str, where: str, header: dict[str, str], body: Any
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        # A kept connection may have been closed by the other side: then a new one is made.
        while True:
            context = self._context
            connection, kept = self._connection(origin)
            try:
                connection.request(method, where, body, header)
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if kept and isinstance(error, _CLOSED):
                    _rewind(body)
                    continue
                unknown = isinstance(error, ssl.SSLCertVerificationError)
                if unknown and origin == self._origin and context is not self._others:
                    self._context = self._elsewhere()  # as containerd, which adds to the system's
                    continue
                self._forget()
                raise UnreachableError(f"{origin[1]} does not answer: {error!r}") from error

    def _connection(self, origin: tuple[str, str]) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if origin == self._origin and self._idle:
                return self._idle.pop(), True
        scheme, host = origin
        if scheme == "https":
            context = self._context if origin == self._origin else self._elsewhere()
            return http.client.HTTPSConnection(host, timeout=self._timeout, context=context), False
        if origin != self._origin:
            raise FleetfootError(f"{self} sends elsewhere without TLS ({host})", "it is not asked")
        return http.client.HTTPConnection(host, timeout=self._timeout), False

    def _elsewhere(self) -> ssl.SSLContext:
        """Return whom to trust where a registry sends clients: the system's authorities, too."""
        with self._lock:
            if self._others is None:
                self._others = ssl.create_default_context()
                if self._access.authority:
                    self._others.load_verify_locations(str(self._access.authority))
            return self._others

    def _forget(self) -> None:
        """Close what was kept: a registry that went away took all of it along."""
        with self._lock:
            _close(self._idle)

    def _give_back(
        self,
        origin: tuple[str, str],
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
    ) -> None:
        left = response.length or 0
        if not response.isclosed() and left < _READ_ON:
            with contextlib.suppress(OSError, http.client.HTTPException):
                response.read(left)
        if response.isclosed() and not response.will_close and origin == self._origin:
            with self._lock:
                self._idle.append(connection)
        else:
            connection.close()

    def _renewed(self, challenge: str) -> str:
        """Return an `Authorization` for what was turned down: read anew, or a token fetched."""
        credential = self._access.authorization()
        scheme, _, parameters = challenge.partition(" ")
        if scheme.lower() != "bearer":
            return credential
        named = dict(re.findall(r'([a-z_]+)="([^"]*)"', parameters))
        query = {key: named[key] for key in ("service", "scope") if key in named}
        realm = urllib.parse.urlsplit(named.get("realm", ""))
        origin = (realm.scheme, realm.netloc)
        # A password goes to the registry itself, or where the registry's TLS says it may.
        if realm.scheme != "https" and origin != self._origin:
            raise FleetfootError(f"{self} names no safe place for tokens: {named.get('realm')!r}")
        asked = urllib.parse.urlencode([*urllib.parse.parse_qsl(realm.query), *query.items()])
        where = urllib.parse.urlunsplit(("", "", realm.path, asked, ""))
        header = {"Authorization": credential} if credential else {}
        connection, response = self._send(origin, "GET", where, header, None)
        try:
            data = response.read(_LARGEST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"{realm.netloc} broke off: {error!r}") from error
        finally:
            connection.close()
        if response.status != _OK:
            raise FleetfootError(f"{realm.netloc} gives no token for {self}: {response.status}")
        try:
            given = json.loads(data)
            return f"Bearer {given.get('token') or given['access_token']}"
        except (ValueError, KeyError, AttributeError) as error:
            raise FleetfootError(f"{realm.netloc} gives no token for {self}") from error


def _close(connections: list[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def repositories(access: Access) -> list[str]:
    """Return the names of all repositories of a registry that tells them.

    Raises:
        UnreachableError: The registry is away.
        FleetfootError: It does not tell them.
    """
    return list(Repository(access, "")._listed("/v2/_catalog?n=1000", "repositories"))


def _next_page(answer: Answer) -> str:
    more = re.match(r'<([^>]+)>; *rel="?next"?', answer.header.get("link", ""))
    return more[1] if more else ""


def manifests_of(index: bytes) -> list[dict[str, Any]]:
    """Return what an index lists.

    Raises:
        FleetfootError: It is none.
    """
    try:
        listed = json.loads(index)["manifests"]
        if listed is None:  # some servers write an empty list so
            return []
    except (ValueError, KeyError, TypeError, RecursionError):
        listed = None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise FleetfootError("this is no index of manifests", "it is not used")
    return listed


def _of(kind: str, index: bytes) -> list[dict[str, Any]]:
    return [each for each in manifests_of(index) if each.get("artifactType") == kind]


def _rewind(body: Any) -> None:
    if hasattr(body, "seek"):
        body.seek(0)
