"""Programs that are really run: written to a folder, with a provider that records what exists."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fleetfoot import artifacts
from fleetfoot.engine import Engine, EventSink, Step, Summary, _secrets
from fleetfoot.errors import FleetfootError

# What exists is one file an object; the log says in which order things were done. FAULT names a
# moment at which the provider kills the engine, its parent: "<operation>:<name>:<before|after>".
PROVIDER = '''
import json, os, pathlib, signal, time
from pulumi.dynamic import *

STORE = pathlib.Path(os.environ["STORE"])

def log(*words):
    with (STORE / "log").open("a") as stream:
        stream.write(" ".join(map(str, words)) + "\\n")

def fault(operation, name, when):
    if os.environ.get("FAULT") == f"{operation}:{name}:{when}":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if os.environ.get("FAIL") == f"{operation}:{name}" and when == "before":
        raise ValueError(f"{operation} of {name} is to fail")

def plain(props):
    return {k: v for k, v in props.items() if not k.startswith("__")}

class Item(ResourceProvider):
    serialize_as_secret_always = False

    def check(self, olds, news):
        failures = [CheckFailure("name", "is empty")] if not news["name"] else []
        return CheckResult(news, failures)

    def diff(self, id, olds, news):
        changed = [k for k in ("name", "content", "fixed") if olds.get(k) != news.get(k)]
        replaces = [k for k in changed if k in ("name", "fixed")]
        return DiffResult(bool(changed), replaces, delete_before_replace="fixed" in changed)

    def create(self, props):
        name = props["name"]
        fault("create", name, "before")
        log("create", name)
        (STORE / f"{name}.json").write_text(json.dumps(plain(props)))
        fault("create", name, "after")
        return CreateResult(name, {**props, "size": len(str(props.get("content")))})

    def update(self, id, olds, news):
        fault("update", id, "before")
        log("update", id)
        (STORE / f"{id}.json").write_text(json.dumps(plain(news)))
        fault("update", id, "after")
        return UpdateResult({**news, "size": len(str(news.get("content")))})

    def delete(self, id, props):
        fault("delete", id, "before")
        log("delete", id)
        (STORE / f"{id}.json").unlink(missing_ok=True)
        fault("delete", id, "after")

    def read(self, id, props):
        path = STORE / f"{id}.json"
        if not path.exists():
            return ReadResult(None, {})
        found = json.loads(path.read_text())
        return ReadResult(id, {**props, **found, "size": len(str(found.get("content")))})

class Known(Item):
    """Says beforehand what id it will give."""

    def check(self, olds, news):
        return CheckResult({**news, "__id": news["name"]}, [])
'''

PRELUDE = """
import pulumi
from pulumi import ResourceOptions as Opts, Output, export
from pulumi.dynamic import Resource
import items

class Item(Resource, name="Item"):
    name: Output[str]
    content: Output[str]
    size: Output[int]
    def __init__(self, name, content="", opts=None, fixed=None, item=None, provider=None):
        props = {"name": name if item is None else item, "content": content, "size": None}
        if fixed is not None:
            props["fixed"] = fixed
        super().__init__(provider or items.Item(), name, props, opts)

config = pulumi.Config()
"""


@dataclass
class Recorder(EventSink):
    """A display that keeps what it is told."""

    steps: list[Step] = field(default_factory=list)
    failed: list[Step] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)

    def end(self, step: Step) -> None:
        (self.failed if step.error else self.steps).append(step)

    def say(self, severity: str, urn: str, message: str) -> None:
        self.said.append((severity, message))


class Project:
    """One project, one stack, one backend and one store of objects."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, model: Path | None = None
    ) -> None:
        self.folder, self._monkeypatch = folder / "project", monkeypatch
        self.backend, self.store = folder / "backend", folder / "store"
        for path in (self.folder, self.backend, self.store):
            if model is None:
                path.mkdir(parents=True)
            else:
                shutil.copytree(model / path.name, path)
        monkeypatch.setenv("STORE", str(self.store))
        (self.folder / "Pulumi.yaml").write_text("name: demo\nruntime: python\n")
        (self.folder / "items.py").write_text(PROVIDER)
        self.display = Recorder()

    def program(self, body: str) -> None:
        (self.folder / "__main__.py").write_text(PRELUDE + textwrap.dedent(body))

    def config(self, text: str, stack: str = "dev") -> None:
        (self.folder / f"Pulumi.{stack}.yaml").write_text(textwrap.dedent(text))

    def engine(self, **options: Any) -> Engine:
        self.display = Recorder()
        return Engine(
            self.folder,
            "dev",
            backend_url=f"file://{self.backend}",
            passphrase="correct horse",
            **{"display": self.display, **options},
        )

    def up(self, body: str | None = None, **options: Any) -> Summary:
        if body is not None:
            self.program(body)
        return self.engine().up(**options)

    def fault(self, moment: str) -> None:
        """Arms the provider for the next run in a process of its own."""
        self._monkeypatch.setenv("FAULT", moment)

    def fail(self, operation: str) -> None:
        self._monkeypatch.setenv("FAIL", operation)

    def unarm(self) -> None:
        self._monkeypatch.delenv("FAULT", raising=False)
        self._monkeypatch.delenv("FAIL", raising=False)

    def process(self, method: str = "up", **env: str) -> subprocess.Popen[str]:
        """Runs the engine in a process of its own, which tests may kill."""
        return subprocess.Popen(
            drive(self, method),
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def objects(self) -> dict[str, Any]:
        """What really exists."""
        return {
            path.stem: json.loads(path.read_text()) for path in sorted(self.store.glob("*.json"))
        }

    def log(self) -> list[str]:
        path = self.store / "log"
        return path.read_text().splitlines() if path.exists() else []

    def forget_log(self) -> None:
        (self.store / "log").unlink(missing_ok=True)

    @property
    def state_file(self) -> Path:
        return self.backend / ".pulumi" / "stacks" / "demo" / "dev.json"

    def state(self) -> dict[str, Any]:
        latest: dict[str, Any] = json.loads(self.state_file.read_text())["checkpoint"]["latest"]
        return latest

    def names(self) -> list[str]:
        """The names of the items that state holds."""
        return sorted(
            item["urn"].rsplit("::", 1)[1]
            for item in self.state().get("resources", [])
            if ":Item::" in item["urn"]
        )

    def resource(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(
            item for item in self.state()["resources"] if item["urn"].endswith(f"::{name}")
        )
        return found


def drive(project: Project, method: str = "up") -> list[str]:
    """The command that runs the engine in a process of its own."""
    script = Path(__file__).with_name("drive.py")
    return [sys.executable, str(script), str(project.folder), str(project.backend), method]


@pytest.fixture(autouse=True, scope="module")
def _quick_keys() -> Iterator[None]:
    """A passphrase's key takes a second to derive, by design; here it need not."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_secrets, "_ITERATIONS", 1000)
        monkeypatch.setenv("QUICK_KEYS", "1000")
        yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(tmp_path, monkeypatch)


def find_program(name: str) -> str | None:
    """A program from FLEETFOOT_BIN, else from PATH, else as `make up` built it."""
    folders = [os.environ.get("FLEETFOOT_BIN", ""), os.environ["PATH"]]
    with contextlib.suppress(FleetfootError):
        folders.append(str(artifacts.directory()))
    return shutil.which(name, path=os.pathsep.join(folders))
