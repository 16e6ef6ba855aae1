"""The embedded engine and the real Pulumi CLI on the same program, objects and state.

Runs where `pulumi` is on PATH. Everything is compared twice: what really exists (one file an
object) and what state says of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fleetfoot.engine import Engine, LockedError, Summary
from fleetfoot.engine._secrets import Crypter

PULUMI = shutil.which("pulumi")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        PULUMI is None, reason="the Pulumi CLI is not on PATH, so the engines were not compared"
    ),
]
PASSPHRASE = "correct horse"
SECRET = "only-für-the-initiated"

PROVIDERS = '''
import json, os, pathlib, signal
from pulumi.dynamic import *

STORE = pathlib.Path(os.environ["STORE"])

def plain(props):
    return {k: v for k, v in props.items() if not k.startswith("__")}

class Item(ResourceProvider):
    serialize_as_secret_always = False

    def check(self, olds, news):
        return CheckResult(news, [])

    def diff(self, id, olds, news):
        changed = [k for k in ("file", "content", "fixed", "extra") if olds.get(k) != news.get(k)]
        replaces = [k for k in changed if k in ("file", "fixed")]
        return DiffResult(bool(changed), replaces, delete_before_replace="fixed" in changed)

    def create(self, props):
        return CreateResult(props["file"], self.write(props["file"], props))

    def update(self, id, olds, news):
        return UpdateResult(self.write(id, news))

    def write(self, id, props):
        (STORE / f"{id}.json").write_text(json.dumps(plain(props)))
        if os.environ.get("FAULT") == id:
            # The test kills the engine now.
            signal.pause()
        return {**props, "size": len(str(props.get("content"))), "seen": {"by": [1, None, 2.5]}}

    def delete(self, id, props):
        (STORE / f"{id}.json").unlink(missing_ok=True)

    def read(self, id, props):
        path = STORE / f"{id}.json"
        if not path.exists():
            return ReadResult(None, {})
        return ReadResult(id, {**props, **json.loads(path.read_text())})

class Default(Item):
    """Serialised as the SDK does it by default."""
    serialize_as_secret_always = True
'''

PRELUDE = """
import pulumi
from pulumi import Alias, CustomTimeouts, Output, ResourceOptions as Opts, export
from pulumi.dynamic import Resource
import items

class Item(Resource, module="demo", name="Item"):
    size: Output[int]
    content: Output[str]
    def __init__(self, name, content="", opts=None, provider=None, file=None, **more):
        props = {"file": file or name, "content": content, "size": None, "seen": None, **more}
        super().__init__(provider or items.Item(), name, props, opts)

class Pair(pulumi.ComponentResource):
    def __init__(self, name, content, opts=None):
        super().__init__("demo:index:Pair", name, {"content": content}, opts)
        self.one = Item(f"{name}-1", content, Opts(parent=self))
        self.two = Item(f"{name}-2", self.one.content, Opts(parent=self, depends_on=[self.one]))
        self.register_outputs({"sizes": [self.one.size, self.two.size]})

config = pulumi.Config()
"""

FULL = """
pair = Pair("pair", config.require_secret("token"))
a = Item("a", "{v}", Opts(protect=True),
         extra={{"deep": [1, 2.5, None, True, {{"ü": "x"}}], "n": {v}}})
b = Item("b", a.content.apply(lambda c: c * 2), Opts(depends_on=[a, pair]))
Item("ignored", "{v}", Opts(ignore_changes=["content"]))
Item("late", Output.secret("{v}"), Opts(additional_secret_outputs=["size"],
     custom_timeouts=CustomTimeouts(create="1m30s", delete="2h")), provider=items.Default())
host = Item("host", fixed={v})
Item("guest", host.size.apply(str), Opts(deleted_with=host))
Item("first", fixed={v})
Item("stay", str(config.require_object("pools")), Opts(retain_on_delete=True))
Item("forced", "{v}", Opts(replace_on_changes=["content"], delete_before_replace=True))
Item("moved", "{v}", file="moved-{v}")
export("plain", [a.size, {{"b": b.content}}])
export("secret", pair.two.content)
"""

RENAMED = 'Pair("couple", config.require_secret("token"), Opts(aliases=[Alias(name="pair")]))'

WAITING = """
import os, pathlib, time
store = pathlib.Path(os.environ["STORE"])
(store / "begun").touch()
while not (store / "go").exists():
    time.sleep(0.01)
Item("a")
"""


class Stack:
    """One project and its backend, worked on by either engine."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.backend, self.store = folder / "p", folder / "b", folder / "s"
        for path in (self.folder, self.backend, self.store):
            path.mkdir(parents=True)
        (self.folder / "Pulumi.yaml").write_text("name: demo\nruntime: python\n")
        (self.folder / "items.py").write_text(PROVIDERS)
        self._monkeypatch = monkeypatch
        for name, value in {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PULUMI_HOME": str(folder / "home"),
            "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE,
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "PYTHONDONTWRITEBYTECODE": "1",
        }.items():
            monkeypatch.setenv(name, value)
        crypter = Crypter(PASSPHRASE)
        self.crypter = crypter
        (self.folder / "Pulumi.dev.yaml").write_text(
            f"encryptionsalt: {crypter.state}\n"
            "config:\n"
            f"  demo:token: {{secure: '{crypter.encrypt(SECRET)}'}}\n"
            "  demo:pools: [{name: a, count: 2}]\n"
        )

    def program(self, body: str) -> None:
        (self.folder / "__main__.py").write_text(PRELUDE + body)

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "STORE": str(self.store),
            "PULUMI_BACKEND_URL": f"file://{self.backend}",
        }

    def engine(self, **options: Any) -> Engine:
        self._monkeypatch.setenv("STORE", str(self.store))
        url = f"file://{self.backend}"
        return Engine(self.folder, "dev", backend_url=url, passphrase=PASSPHRASE, **options)

    def embedded(self, method: str = "up") -> Summary:
        summary: Summary = getattr(self.engine(), method)()
        assert summary.ok, summary.errors
        return summary

    def process(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["pulumi", *arguments, "--non-interactive", "--color=never"],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def cli(self, *arguments: str, status: int = 0) -> str:
        process = self.process(*arguments)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == status, output
        return output

    def up(self, who: str, body: str) -> None:
        self.program(body)
        if who == "cli":
            self.cli("stack", "select", "--create", "dev")
            self.cli("up", "--yes", "--skip-preview", "--stack=dev")
        else:
            self.embedded()

    def same(self, who: str) -> None:
        """Fails if an engine sees a change, in a preview or when it looks first."""
        if who == "cli":
            self.cli("preview", "--expect-no-changes", "--stack=dev")
            self.cli("preview", "--refresh", "--expect-no-changes", "--stack=dev")
        else:
            assert set(self.embedded("preview").counts) == {"same"}

    def objects(self) -> dict[str, Any]:
        return {path.stem: json.loads(path.read_text()) for path in self.store.glob("*.json")}

    def latest(self) -> dict[str, Any]:
        path = self.backend / ".pulumi/stacks/demo/dev.json"
        found: dict[str, Any] = json.loads(path.read_text())["checkpoint"]["latest"]
        return found

    def resources(self) -> dict[str, Any]:
        """What state says, without what differs between any two stacks."""
        found = {}
        for resource in self.latest().get("resources", []):
            item = self.opened(resource)
            for key in ("created", "modified"):
                assert re.fullmatch(r"\d{4}-.*Z", item.pop(key, "0000-Z"))
            # The frames of who runs the program are in it.
            item.pop("stackTrace", None)
            # The SDK sends them as a set.
            item["dependencies"] = sorted(item.get("dependencies", []))
            found[item["urn"]] = item
        text = json.dumps(found)
        for resource in found.values():
            if resource["type"].startswith("pulumi:providers:"):
                text = text.replace(resource["id"], "<id>")
        plain: dict[str, Any] = json.loads(text)
        return plain

    def opened(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.opened(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "ciphertext" in value:
            return {"secret": json.loads(self.crypter.decrypt(value["ciphertext"]))}
        return {key: self.opened(item) for key, item in value.items()}


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Every place where two documents differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = sorted(left.keys() | right.keys())
        return [
            line
            for key in keys
            for line in differences(
                left.get(key, "absent"), right.get(key, "absent"), f"{path}/{key}"
            )
        ]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [line for n, (one, two) in pairs for line in differences(one, two, f"{path}/{n}")]
    return [] if left == right else [f"{path}: {left!r} is not {right!r}"]


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    return Stack(tmp_path / "one", monkeypatch)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Stack, Stack]:
    return Stack(tmp_path / "one", monkeypatch), Stack(tmp_path / "two", monkeypatch)


@pytest.mark.parametrize(("maker", "other"), [("embedded", "cli"), ("cli", "embedded")])
def test_other_engine_sees_no_change(stack: Stack, maker: str, other: str) -> None:
    stack.up(maker, FULL.format(v=1))
    before, things = stack.resources(), stack.objects()
    stack.same(other)
    stack.up(other, FULL.format(v=1))
    found = differences(before, stack.resources())
    assert not found, "\n".join(found)
    stack.same(maker)
    assert stack.objects() == things


def test_both_leave_the_same_state(pair: tuple[Stack, Stack]) -> None:
    one, two = pair
    for version in (1, 2):
        one.up("embedded", FULL.format(v=version))
        two.up("cli", FULL.format(v=version))
        assert one.objects() == two.objects()
        found = differences(one.resources(), two.resources())
        assert not found, "\n".join(found)


def test_engines_take_turns(pair: tuple[Stack, Stack]) -> None:
    one, two = pair
    for version, (first, second) in enumerate([("embedded", "cli"), ("cli", "embedded")] * 2):
        body = FULL.format(v=version)
        if version == 2:
            # Renamed, moved into a component, replaced, undeclared.
            body = body.replace('Pair("pair", config.require_secret("token"))', RENAMED)
            body = body.replace('Item("guest"', 'Item("visitor"')
        one.up(first, body)
        two.up(second, body)
        assert one.objects() == two.objects()
        found = differences(one.resources(), two.resources())
        assert not found, "\n".join(found)
        one.same(second)
        two.same(first)


def test_refresh_and_destroy(pair: tuple[Stack, Stack]) -> None:
    one, two = pair
    body = FULL.format(v=1).replace("protect=True", "protect=False")
    for who, each in (("cli", one), ("embedded", two)):
        each.up(who, body)
        (each.store / "b.json").unlink()
        (each.store / "pair-1.json").unlink()
        drifted = each.store / "forced.json"
        drifted.write_text(drifted.read_text().replace('"1"', '"drifted"'))
    one.embedded("refresh")
    two.cli("refresh", "--yes", "--skip-preview", "--stack=dev")
    found = differences(one.resources(), two.resources())
    assert not found, "\n".join(found)
    one.cli("up", "--yes", "--skip-preview", "--stack=dev")
    two.embedded()
    assert one.objects() == two.objects()
    one.embedded("destroy")
    two.cli("destroy", "--yes", "--skip-preview", "--stack=dev")
    assert one.objects().keys() == two.objects().keys() == {"guest", "stay"}
    assert one.resources() == two.resources() == {}


def test_previews_name_the_same_steps(stack: Stack) -> None:
    stack.up("embedded", FULL.format(v=1))
    stack.program(FULL.format(v=2).replace('Item("guest"', 'Item("visitor"'))
    told = json.loads(stack.cli("preview", "--json", "--stack=dev"))
    assert told["changeSummary"] == dict(stack.embedded("preview").counts)


def test_protect_is_kept_by_both(stack: Stack) -> None:
    stack.up("embedded", FULL.format(v=1))
    stack.cli("state", "protect", "--yes", "--stack=dev", urn(stack, "b"))
    summary = stack.engine().destroy()
    assert sum("protected" in error for error in summary.errors) == 2
    assert len(stack.objects()) == 12
    assert "protected" in stack.cli("destroy", "--yes", "--skip-preview", "--stack=dev", status=1)
    stack.cli("state", "unprotect", "--all", "--yes", "--stack=dev")
    stack.embedded("destroy")


def urn(stack: Stack, name: str) -> str:
    return next(found for found in stack.resources() if found.endswith(f"::{name}"))


def test_targets_leave_the_others(pair: tuple[Stack, Stack]) -> None:
    for who, each in zip(("cli", "embedded"), pair, strict=True):
        each.up(who, FULL.format(v=1))
        each.program(FULL.format(v=2) + 'Item("new")')
        targets = [urn(each, "forced"), urn(each, "a")]
        if who == "cli":
            asked = [f"--target={target}" for target in targets]
            each.cli("up", "--yes", "--skip-preview", "--stack=dev", *asked)
        else:
            summary = each.engine().up(targets=targets)
            assert summary.ok, summary.errors
    one, two = pair
    assert one.objects() == two.objects()
    found = differences(one.resources(), two.resources())
    assert not found, "\n".join(found)


def test_outputs_history_and_secrets_open_in_both(stack: Stack) -> None:
    stack.up("embedded", FULL.format(v=1))
    shown = json.loads(stack.cli("stack", "output", "--json", "--show-secrets", "--stack=dev"))
    assert shown == stack.engine().outputs(show_secrets=True)
    assert shown["secret"] == SECRET
    hidden = json.loads(stack.cli("stack", "output", "--json", "--stack=dev"))
    assert hidden == stack.engine().outputs()
    history = json.loads(stack.cli("stack", "history", "--json", "--stack=dev"))
    assert [(item["kind"], item["result"]) for item in history] == [("update", "succeeded")]
    assert history[0]["resourceChanges"] == {"create": 14}
    assert SECRET in stack.cli("config", "--show-secrets", "--stack=dev")
    assert SECRET in stack.cli("stack", "export", "--show-secrets", "--stack=dev")
    for path in (stack.backend / ".pulumi").rglob("*.json*"):
        assert SECRET not in path.read_text(), path


def test_salt_without_configuration_file(stack: Stack) -> None:
    (stack.folder / "Pulumi.dev.yaml").unlink()
    body = f'Item("a", Output.secret({SECRET!r})); export("s", Output.secret(1))'
    stack.up("embedded", body)
    stack.same("cli")
    assert json.loads(stack.cli("stack", "output", "--json", "--show-secrets", "--stack=dev"))
    stack.up("cli", body)
    stack.same("embedded")


def test_export_and_import(stack: Stack) -> None:
    stack.up("embedded", FULL.format(v=1))
    before = stack.resources()
    exported = stack.folder / "exported.json"
    stack.cli("stack", "export", f"--file={exported}", "--stack=dev")
    deployment = json.loads(exported.read_text())["deployment"]
    # The CLI seals secrets anew.
    found = differences(stack.opened(stack.latest()), stack.opened(deployment))
    assert not found, "\n".join(found)
    stack.cli("stack", "import", f"--file={exported}", "--stack=dev")
    found = differences(before, stack.resources())
    assert not found, "\n".join(found)
    stack.same("embedded")


def test_locks_are_seen_by_the_other(stack: Stack) -> None:
    stack.program(WAITING)
    stack.cli("stack", "init", "dev")
    for number in range(2):
        (stack.store / "go").unlink(missing_ok=True)
        (stack.store / "begun").unlink(missing_ok=True)
        if number:
            process = stack.process("up", "--yes", "--skip-preview", "--stack=dev")
        else:
            process = embedded_process(stack)
        until((stack.store / "begun").exists, process)
        if number:
            with pytest.raises(LockedError, match=rf"pid {process.pid}\b"):
                stack.engine().up()
        else:
            output = stack.cli("up", "--yes", "--skip-preview", "--stack=dev", status=1)
            assert f"pid {process.pid}" in output
        (stack.store / "go").touch()
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output


def until(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def embedded_process(stack: Stack) -> subprocess.Popen[str]:
    script = (
        "import sys; from pathlib import Path; from fleetfoot.engine import Engine\n"
        "summary = Engine(Path(sys.argv[1]), 'dev', backend_url=sys.argv[2],"
        " passphrase=sys.argv[3]).up()\n"
        "sys.exit(not summary.ok)"
    )
    argv = [sys.executable, "-c", script, str(stack.folder), f"file://{stack.backend}", PASSPHRASE]
    return subprocess.Popen(
        argv, env=stack.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("victim", ["embedded", "cli"])
@pytest.mark.parametrize("thing", ["b", "pair-1"])
def test_other_engine_goes_on_after_a_kill(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, victim: str, thing: str
) -> None:
    stack.program(FULL.format(v=1))
    stack.cli("stack", "init", "dev")
    monkeypatch.setenv("FAULT", thing)
    if victim == "cli":
        process = stack.process("up", "--yes", "--skip-preview", "--stack=dev")
    else:
        process = embedded_process(stack)
    until((stack.store / f"{thing}.json").exists, process)
    children = descendants(process.pid)
    process.kill()
    process.communicate()
    if victim == "cli":
        # Its children do not end by themselves.
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    monkeypatch.delenv("FAULT")
    if victim == "cli":
        summary = stack.engine(lock_wait=60).up()
        assert summary.ok, summary.errors
        assert "pending_operations" not in stack.latest()
    else:
        # To the CLI a lock is a lock, whether or not its holder lives.
        assert "locked" in stack.cli("up", "--yes", "--skip-preview", "--stack=dev", status=1)
        stack.engine(lock_wait=60).wait()
        output = stack.cli("up", "--yes", "--skip-preview", "--stack=dev")
        # The CLI keeps what it does not know; the embedded engine clears it up.
        assert "pending" in output
        stack.embedded()
        assert "pending_operations" not in stack.latest()
    assert len(stack.objects()) == 12
    stack.same("cli")
    stack.same("embedded")
