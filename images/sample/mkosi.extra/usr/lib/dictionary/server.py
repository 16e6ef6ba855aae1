"""A dictionary over HTTP: GET /words/WORD, GET /search?q=TERMS, GET /stats, GET /healthz."""

import json
import os
import re
import signal
import socket
import sqlite3
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

DATABASE = os.environ.get("DATABASE", "/usr/share/dictionary/words.sqlite")
PORT = int(os.environ.get("PORT", "8080"))
LIMIT = 20
_local = threading.local()


def rows(query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    """Run a query on this thread's own read-only connection."""
    if not hasattr(_local, "database"):
        _local.database = sqlite3.connect(f"file:{DATABASE}?mode=ro&immutable=1", uri=True)
        # The container has no place to write.
        _local.database.execute("PRAGMA temp_store = MEMORY")
    return _local.database.execute(query, arguments).fetchall()


def word(name: str) -> tuple[HTTPStatus, Any]:
    """All senses of a word."""
    found = rows(
        "SELECT part, gloss FROM sense JOIN word ON word.sense = sense.id"
        " WHERE word = ? COLLATE NOCASE ORDER BY sense.id",
        name,
    )
    if not found:
        return HTTPStatus.NOT_FOUND, {"error": f"no such word: {name}"}
    senses = [{"part": part, "gloss": gloss} for part, gloss in found]
    return HTTPStatus.OK, {"word": name, "senses": senses}


def search(terms: str) -> tuple[HTTPStatus, Any]:
    """Senses whose gloss has all the terms, best first."""
    quoted = " ".join(f'"{term}"' for term in re.findall(r"\w+", terms))
    if not quoted:
        return HTTPStatus.BAD_REQUEST, {"error": "q: give at least one word"}
    found = rows(
        "SELECT (SELECT group_concat(word, ', ') FROM word WHERE sense = gloss_index.rowid), gloss"
        " FROM gloss_index WHERE gloss_index MATCH ? ORDER BY rank LIMIT ?",
        quoted,
        LIMIT,
    )
    return HTTPStatus.OK, [{"words": words, "gloss": gloss} for words, gloss in found]


def stats() -> tuple[HTTPStatus, Any]:
    """How much there is, and which pod answers."""
    senses, words = rows("SELECT senses, words FROM stats")[0]
    return HTTPStatus.OK, {"senses": senses, "words": words, "pod": socket.gethostname()}


class Handler(BaseHTTPRequestHandler):
    """Routes a request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer in JSON."""
        url = urlsplit(self.path)
        if url.path == "/healthz":
            rows("SELECT 1 FROM sense LIMIT 1")
            answer: tuple[HTTPStatus, Any] = HTTPStatus.OK, {"status": "ok"}
        elif url.path == "/stats":
            answer = stats()
        elif url.path == "/search":
            answer = search(parse_qs(url.query).get("q", [""])[0])
        elif url.path.startswith("/words/"):
            answer = word(unquote(url.path.removeprefix("/words/")))
        else:
            answer = HTTPStatus.NOT_FOUND, {"error": __doc__}
        body = json.dumps(answer[1]).encode()
        self.send_response(answer[0])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing for each request: the metrics of the cluster do."""


def main() -> None:
    """Serve until the pod is asked to end."""
    server = ThreadingHTTPServer(("", PORT), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()


if __name__ == "__main__":
    main()
