"""Files: layout, loss-free round trips, atomic writes, locks."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fleetfoot.engine import EngineError, LockedError
from fleetfoot.engine import _backend as backend
from fleetfoot.engine import _lock as lock
from fleetfoot.engine._secrets import Crypter
from fleetfoot.engine._state import Checkpoint

from .conftest import Project

SECRET = "only-for-the-initiated"


def test_layout_is_the_clis(project: Project) -> None:
    project.up('Item("a")')
    project.up('Item("a", "x")')
    root = project.backend / ".pulumi"
    found = {
        re.sub(r"\d{19}", "N", str(path.relative_to(root)))
        for path in root.rglob("*")
        if path.is_file()
    }
    assert found == {
        "meta.yaml",
        "stacks/demo/dev.json",
        "stacks/demo/dev.json.bak",
        "history/demo/dev/dev-N.history.json",
        "history/demo/dev/dev-N.checkpoint.json",
        "backups/demo/dev/dev.N.json",
    }
    assert (root / "meta.yaml").read_text() == "version: 1\n"
    history = sorted((root / "history/demo/dev").glob("*.history.json"))
    record = json.loads(history[-1].read_text())
    assert record["kind"] == "update"
    assert record["result"] == "succeeded"
    assert record["resourceChanges"] == {"same": 1, "update": 1}
    assert stat.S_IMODE(project.state_file.stat().st_mode) == 0o600


def test_checkpoint_of_the_cli_round_trips_without_loss() -> None:
    """A checkpoint with every field that the CLI writes, and some that it may write one day."""
    crypter = Crypter("pw")
    resource: dict[str, Any] = {
        "urn": "urn:pulumi:dev::demo::a:b:C::d",
        "custom": True,
        "delete": True,
        "id": "i",
        "type": "a:b:C",
        "inputs": {
            "n": 1.5,
            "whole": 3,
            "none": None,
            "list": [1, "a", {"x": False}],
            "secret": {
                "4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270",
                "ciphertext": crypter.encrypt('{"a":[1,"ü"]}'),
            },
            "asset": {
                "4dabf18193072939515e22adb298388d": "c44067f5952c0a294b673a41bacd8c17",
                "hash": "00",
                "path": "file",
            },
            "reference": {
                "4dabf18193072939515e22adb298388d": "5cf8f73096256a8f31e491e813e4eb8e",
                "urn": "urn:pulumi:dev::demo::a:b:C::e",
                "packageVersion": "",
            },
        },
        "outputs": {"o": {}},
        "parent": "urn:pulumi:dev::demo::pulumi:pulumi:Stack::demo-dev",
        "protect": True,
        "taint": True,
        "external": True,
        "dependencies": ["urn:pulumi:dev::demo::a:b:C::e"],
        "initErrors": ["e"],
        "provider": "urn:pulumi:dev::demo::pulumi:providers:a::default::id",
        "propertyDependencies": {"n": [], "whole": ["urn:pulumi:dev::demo::a:b:C::e"]},
        "pendingReplacement": True,
        "additionalSecretOutputs": ["o"],
        "aliases": ["urn:pulumi:dev::demo::a:b:C::f"],
        "customTimeouts": {"create": 60},
        "importID": "x",
        "retainOnDelete": True,
        "deletedWith": "urn:pulumi:dev::demo::a:b:C::e",
        "created": "2026-11-21T15:23:26.051381405Z",
        "modified": "2026-11-21T15:23:26.051381405Z",
        "sourcePosition": "project:///__main__.py#17",
        "stackTrace": [{"sourcePosition": "project:///__main__.py#17"}, {}],
        "ignoreChanges": ["n"],
        "replaceOnChanges": ["whole"],
        "replaceWith": ["urn:pulumi:dev::demo::a:b:C::e"],
        "refreshBeforeUpdate": True,
        "resourceHooks": {"before": ["h"]},
        "fieldOfTheFuture": {"a": 1},
    }
    document = {
        "version": 3,
        "checkpoint": {
            "stack": "organization/demo/dev",
            "latest": {
                "manifest": {},
                "secrets_providers": {"type": "passphrase", "state": {"salt": crypter.state}},
                "resources": [resource],
                "pending_operations": [{"resource": resource, "type": "creating"}],
                "metadata": {"integrity_error": {"version": "v3", "error": "e"}},
            },
        },
    }
    read = Checkpoint.from_json(json.loads(json.dumps(document)), crypter.decrypt)
    written = read.to_json(crypter.encrypt, crypter.state)
    del written["checkpoint"]["latest"]["manifest"]
    del document["checkpoint"]["latest"]["manifest"]  # type: ignore[index]
    assert written == document


def test_unchanged_run_keeps_the_file(project: Project) -> None:
    body = f'Item("a", Output.secret("{SECRET}")); export("s", Output.secret("{SECRET}"))'
    project.up(body)
    before = project.state()
    project.up(body)
    after = project.state()
    del before["manifest"], after["manifest"]
    assert _without_ciphertext_of_outputs(after) == _without_ciphertext_of_outputs(before)


def _without_ciphertext_of_outputs(state: dict[str, Any]) -> dict[str, Any]:
    state["resources"][0].pop("outputs")
    return state


def test_secrets_never_stand_in_clear(project: Project) -> None:
    summary = project.up(f"""
        a = Item("a", Output.secret("{SECRET}"))
        b = Item("b", a.content.apply(lambda c: c + "!"))
        c = Item("c", "plain", Opts(additional_secret_outputs=["size"]))
        export("secret", a.content)
        export("inside", {{"deep": [b.content]}})
    """)
    assert summary.ok, summary.errors
    # The provider gets them in clear, as it cannot open them.
    assert project.objects()["b"]["content"] == SECRET + "!"
    for path in (project.backend / ".pulumi").rglob("*.json*"):
        assert SECRET not in path.read_text(), path
    assert "ciphertext" in project.resource("c")["outputs"]["size"]
    hidden = {"secret": "[secret]", "inside": {"deep": ["[secret]"]}}
    assert project.engine().outputs() == hidden
    shown = project.engine().outputs(show_secrets=True)
    assert shown == {"secret": SECRET, "inside": {"deep": [SECRET + "!"]}}
    assert SECRET not in repr(project.engine().resources())
    assert SECRET in repr(project.engine().resources(show_secrets=True))


def test_secure_configuration_is_opened_and_stays_secret(project: Project) -> None:
    crypter = Crypter("correct horse")
    project.config(f"""
        encryptionsalt: {crypter.state}
        config:
          demo:token: {{secure: "{crypter.encrypt(SECRET)}"}}
          demo:nested: {{a: {{secure: "{crypter.encrypt(SECRET)}"}}, b: 1}}
    """)
    summary = project.up("""
        Item("a", config.require_secret("token"))
        Item("b", config.require_secret_object("nested").apply(lambda n: n["a"]))
    """)
    assert summary.ok, summary.errors
    assert {item["content"] for item in project.objects().values()} == {SECRET}
    assert SECRET not in project.state_file.read_text()
    assert project.state()["secrets_providers"]["state"]["salt"] == crypter.state


def test_configuration_file_is_never_written(project: Project) -> None:
    project.config("config: {demo:a: b}")
    before = (project.folder / "Pulumi.dev.yaml").read_text()
    project.up("")
    assert (project.folder / "Pulumi.dev.yaml").read_text() == before


def test_salt_that_comes_later_is_taken_up(project: Project) -> None:
    body = f'Item("a", Output.secret("{SECRET}"))'
    project.up(body)
    crypter = Crypter("correct horse")
    project.config(f"encryptionsalt: {crypter.state}")
    assert project.up(body).counts == {"same": 2}
    sealed = project.resource("a")["inputs"]["content"]["ciphertext"]
    assert json.loads(crypter.decrypt(sealed)) == SECRET


def test_wrong_passphrase_changes_nothing(project: Project, monkeypatch: Any) -> None:
    project.up('Item("a", Output.secret("x"))')
    before = project.state_file.read_text()
    engine = project.engine()
    monkeypatch.setattr(engine, "_passphrase", "wrong")
    with pytest.raises(EngineError, match="passphrase"):
        engine.up()
    assert project.state_file.read_text() == before
    assert not list((project.backend / ".pulumi/locks").rglob("*.json"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is not JSON"),
        ('{"version": 4, "checkpoint": {}}', "version 4"),
        (
            '{"version": 3, "checkpoint": {"latest": {"secrets_providers": {"type": "cloud"}}}}',
            "cloud",
        ),
    ],
)
def test_foreign_checkpoints_are_left_alone(project: Project, text: str, match: str) -> None:
    project.program("")
    project.state_file.parent.mkdir(parents=True)
    project.state_file.write_text(text)
    with pytest.raises(EngineError, match=match):
        project.engine().up()
    assert project.state_file.read_text() == text


def test_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    backend.write_atomically(path, "old")

    def full(_handle: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        backend.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def holder(pid: int, host: str | None = None) -> str:
    return json.dumps(
        {
            "pid": pid,
            "username": "ada",
            "hostname": host or socket.gethostname(),
            "timestamp": "2999-11-21T15:23:26.051381405Z",
        }
    )


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_lock_names_its_holder(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(holder(os.getpid()))
    with (
        pytest.raises(LockedError, match=rf"ada@.* \(pid {os.getpid()}\) since 2999"),
        lock.hold(tmp_path, 0),
    ):
        pass
    assert (tmp_path / "x.json").exists()


def test_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(holder(dead_pid()))
    with lock.hold(tmp_path, 0):
        (mine,) = tmp_path.glob("*.json")
        content = json.loads(mine.read_text())
        assert content["pid"] == os.getpid()
        assert content["hostname"] == socket.gethostname()
    assert not list(tmp_path.iterdir())


def test_lock_of_a_zombie_is_taken_over(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        state = Path(f"/proc/{process.pid}/stat")
        while state.read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        (tmp_path / "x.json").write_text(holder(process.pid))
        with lock.hold(tmp_path, 0):
            assert not (tmp_path / "x.json").exists()


def test_lock_of_a_reused_pid_is_taken_over(tmp_path: Path) -> None:
    text = holder(os.getpid()).replace("2999", "2001")
    (tmp_path / "x.json").write_text(text)
    with lock.hold(tmp_path, 0):
        assert not (tmp_path / "x.json").exists()


def test_lock_of_another_host_is_never_taken_over(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(holder(dead_pid(), "elsewhere"))
    with pytest.raises(LockedError, match="elsewhere"), lock.hold(tmp_path, 0):
        pass


def test_second_run_waits_for_the_first(project: Project) -> None:
    project.program("""
        import os, pathlib, time
        store = pathlib.Path(os.environ["STORE"])
        (store / "begun").touch()
        while not (store / "go").exists():
            time.sleep(0.01)
        Item("a")
    """)
    first = project.process()
    while not (project.store / "begun").exists():
        assert first.poll() is None
    with pytest.raises(LockedError, match=f"pid {first.pid}"):
        project.engine().up()
    (project.store / "go").touch()
    assert project.engine(lock_wait=60).up().counts == {"same": 2}
    first.communicate()
    assert first.returncode == 0
