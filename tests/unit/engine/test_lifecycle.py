"""What happens to resources, with the SDK as the client and real objects behind the provider."""

from __future__ import annotations

import json
import time

import pytest

from .conftest import Project


def test_create_same_update_delete(project: Project) -> None:
    body = """
        a = Item("a", config.get("colour") or "red")
        b = Item("b", a.content.apply(lambda c: c * 2))
        export("size", b.size)
    """
    assert project.up(body).counts == {"create": 3}
    assert project.objects()["b"]["content"] == "redred"
    assert project.engine().outputs() == {"size": 6}

    assert project.engine().up().counts == {"same": 3}
    project.config("config: {demo:colour: blue}")
    assert project.engine().preview().counts == {"same": 1, "update": 2}
    assert project.objects()["a"]["content"] == "red"
    assert project.up().counts == {"same": 1, "update": 2}
    assert project.objects()["b"]["content"] == "blueblue"

    assert project.up('Item("a", "blue")').counts == {"same": 2, "delete": 1}
    assert set(project.objects()) == {"a"}
    assert project.engine().destroy().counts == {"delete": 2}
    assert project.objects() == {}
    assert "resources" not in project.state()


def test_nothing_to_do_takes_little_time(project: Project) -> None:
    project.up("""
        for n in range(20):
            Item(f"i{n}")
    """)
    started = time.monotonic()
    assert project.engine().up().counts == {"same": 21}
    # Two seconds is the goal on a quiet host; tests must hold on a busy one.
    assert time.monotonic() - started < 10


def test_preview_of_nothing_changes_nothing(project: Project) -> None:
    project.program('Item("a")')
    summary = project.engine().preview()
    assert summary.ok
    assert summary.counts == {"create": 2}
    assert project.objects() == {}
    assert not project.state_file.exists()


def test_replacement_is_made_before_the_old_one_goes(project: Project) -> None:
    project.up('a = Item("a", item="one"); Item("b", a.name)')
    project.forget_log()
    summary = project.up('a = Item("a", item="two"); Item("b", a.name)')
    assert summary.counts["replace"] == 1
    assert project.log() == ["create two", "update b", "delete one"]
    assert project.objects()["b"]["content"] == "two"


def test_replacement_after_deletion_takes_dependents_along(project: Project) -> None:
    body = """
        a = Item("a", fixed={n})
        b = Item("b", fixed=a.size.apply(lambda s: s + {n}))
        c = Item("c", b.size.apply(str), Opts(depends_on=[a]))
        d = Item("d")
    """
    project.up(body.format(n=1))
    project.forget_log()
    summary = project.up(body.format(n=2))
    assert summary.ok, summary.errors
    # c needs no new object when b changes, so it lives on.
    assert project.log() == ["delete b", "delete a", "create a", "create b"]
    assert summary.counts == {"same": 3, "replace": 2}
    assert project.names() == ["a", "b", "c", "d"]
    assert not any(item.get("pendingReplacement") for item in project.state()["resources"])


def test_deletions_follow_dependencies(project: Project) -> None:
    project.up("""
        a = Item("a")
        b = Item("b", opts=Opts(depends_on=[a]))
        c = Item("c", b.size.apply(str))
        d = Item("d", opts=Opts(parent=a))
    """)
    project.forget_log()
    assert project.engine(parallel=4).destroy().ok
    log = project.log()
    assert log.index("delete c") < log.index("delete b") < log.index("delete a")
    assert log.index("delete d") < log.index("delete a")


def test_components_and_outputs(project: Project) -> None:
    summary = project.up("""
        class Pair(pulumi.ComponentResource):
            def __init__(self, name, opts=None):
                super().__init__("demo:index:Pair", name, None, opts)
                self.one = Item(f"{name}-1", opts=Opts(parent=self))
                self.two = Item(f"{name}-2", opts=Opts(parent=self, depends_on=[self.one]))
                self.register_outputs({"sizes": [self.one.size, self.two.size]})
        pair = Pair("p")
        Item("after", opts=Opts(depends_on=[pair]))
    """)
    assert summary.ok, summary.errors
    component = project.resource("p")
    assert component["outputs"] == {"sizes": [0, 0]}
    child = project.resource("p-1")
    assert child["urn"] == ("urn:pulumi:dev::demo::demo:index:Pair$pulumi-python:dynamic:Item::p-1")
    assert child["parent"] == component["urn"]
    project.forget_log()
    project.engine().destroy()
    assert project.log()[0] == "delete after"


def test_protected_resources_are_not_deleted(project: Project) -> None:
    project.up('Item("a", opts=Opts(protect=True)); Item("b")')
    summary = project.engine().destroy()
    assert not summary.ok
    assert "protected" in summary.errors[0]
    assert set(project.objects()) == {"a", "b"}
    assert not project.up('Item("b")').ok
    assert not project.up('Item("a", item="z", opts=Opts(protect=True)); Item("b")').ok
    assert set(project.objects()) == {"a", "b"}
    assert project.up('Item("a", opts=Opts(protect=False)); Item("b")').ok
    assert project.engine().destroy().ok


def test_options_that_change_what_happens(project: Project) -> None:
    body = """
        host = Item("host", "{v}")
        Item("left", "{v}", Opts(ignore_changes=["content"]))
        Item("kept", opts=Opts(retain_on_delete=True))
        Item("inside", opts=Opts(deleted_with=host))
        Item("forced", "{v}", Opts(delete_before_replace=True), item="forced-{v}")
    """
    project.up(body.format(v=1))
    assert project.up(body.format(v=2)).ok
    assert project.objects()["left"]["content"] == "1"
    assert project.log()[-2:] == ["delete forced-1", "create forced-2"] or (
        project.log().index("delete forced-1") < project.log().index("create forced-2")
    )
    project.forget_log()
    assert project.engine().destroy().ok
    assert set(project.objects()) == {"inside", "kept"}
    assert "delete inside" not in project.log()


def test_what_is_deleted_with_a_replaced_resource_is_not_deleted_itself(project: Project) -> None:
    body = 'host = Item("host", fixed={v}); Item("guest", opts=Opts(deleted_with=host))'
    project.up(body.format(v=1))
    project.forget_log()
    assert project.up(body.format(v=2)).counts == {"same": 1, "replace": 2}
    assert project.log() == ["delete host", "create host", "create guest"]


def test_aliases_keep_the_object(project: Project) -> None:
    project.up("""
        class Box(pulumi.ComponentResource):
            def __init__(self, name, opts=None):
                super().__init__("demo:index:Box", name, None, opts)
                Item(f"{name}-in", opts=Opts(parent=self), item="in")
        Box("old")
        Item("a", item="x")
    """)
    project.forget_log()
    summary = project.up("""
        class Box(pulumi.ComponentResource):
            def __init__(self, name, opts=None):
                super().__init__("demo:index:Box", name, None, opts)
                Item(f"{name}-in", opts=Opts(parent=self), item="in")
        Box("new", Opts(aliases=[pulumi.Alias(name="old")]))
        Item("b", item="x", opts=Opts(aliases=[pulumi.Alias(name="a")]))
    """)
    assert summary.ok, summary.errors
    assert summary.counts == {"same": 4}
    assert project.log() == []
    assert project.names() == ["b", "new-in"]
    assert "aliases" not in json.dumps(project.state())


def test_duplicate_urn_is_told(project: Project) -> None:
    summary = project.up('Item("a"); Item("a")')
    assert not summary.ok
    assert any("Duplicate resource URN" in error for error in summary.errors)


def test_refresh_sees_what_changed_and_what_is_gone(project: Project) -> None:
    body = 'a = Item("a", "x"); Item("b", a.content)'
    project.up(body)
    (project.store / "a.json").write_text(json.dumps({"name": "a", "content": "drifted"}))
    (project.store / "b.json").unlink()
    assert project.engine().refresh().counts == {"update": 1, "delete": 1}
    assert project.resource("a")["outputs"]["content"] == "drifted"
    assert project.names() == ["a"]
    assert project.up(body).ok
    assert project.objects()["b"]["content"] == "x"


def test_up_refreshes_when_asked(project: Project) -> None:
    body = 'Item("a", "x")'
    project.up(body)
    (project.store / "a.json").unlink()
    assert project.up(body).counts == {"same": 2}
    assert project.up(body, refresh=True).ok
    assert set(project.objects()) == {"a"}


def test_targets_leave_the_others(project: Project) -> None:
    body = 'Item("a", "{v}"); Item("b", "{v}"); {more}'
    project.up(body.format(v=1, more=""))
    urn = project.resource("a")["urn"]
    summary = project.up(body.format(v=2, more='Item("c")'), targets=[urn])
    assert summary.ok, summary.errors
    assert {name: item["content"] for name, item in project.objects().items()} == {
        "a": "2",
        "b": "1",
    }


def test_target_that_needs_what_is_no_target_is_told(project: Project) -> None:
    project.up('Item("a")')
    urn = project.resource("a")["urn"]
    body = 'new = Item("new"); Item("a", new.content)'
    summary = project.up(body, targets=[urn])
    assert not summary.ok
    assert "which is not in the targets" in summary.errors[0]
    assert "::new" in summary.errors[0]
    assert set(project.objects()) == {"a"}


def test_target_that_is_not_there_is_told(project: Project) -> None:
    project.up('Item("a"); Item("b")')
    urn = project.resource("a")["urn"]
    summary = project.up('Item("a")', targets=[urn + "x"])
    assert any(f"The target {urn}x is neither in" in error for error in summary.errors)
    assert set(project.objects()) == {"a", "b"}


def test_failed_step_stops_the_rest_and_is_told_with_its_line(project: Project) -> None:
    project.fail("create:b")
    body = 'a = Item("a"); b = Item("b", a.name); Item("c", b.name)'
    summary = project.up(body)
    assert not summary.ok
    assert "create of b is to fail" in summary.errors[0]
    assert "items.py" in summary.errors[0]
    assert [step.name for step in project.display.failed] == ["b"]
    assert project.names() == ["a"]
    assert "pending_operations" not in project.state()
    project.unarm()
    assert project.up(body).ok
    assert set(project.objects()) == {"a", "b", "c"}


def test_failed_check_is_told(project: Project) -> None:
    summary = project.up('Item("a", item="")')
    assert not summary.ok
    assert "name: is empty" in summary.errors[0]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ('raise ValueError("broken here")', "broken here"),
        ("import os; os._exit(7)", "non-zero exit code: 7"),
        ("import os; os._exit(0)", "ended without an error before"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ('Item("a", nonsense=1)', "nonsense"),
    ],
)
def test_program_that_breaks_changes_nothing(project: Project, body: str, what: str) -> None:
    project.up('Item("a")')
    summary = project.up(body)
    assert not summary.ok
    assert any(what in error for error in summary.errors), summary.errors
    assert set(project.objects()) == {"a"}
    assert project.names() == ["a"]


def test_traceback_names_the_program_only(project: Project) -> None:
    summary = project.up('raise ValueError("broken here")')
    assert "__main__.py" in summary.errors[0]
    assert "runpy" not in summary.errors[0]


def test_what_the_program_prints_is_shown(project: Project) -> None:
    project.up('print("hello"); import sys; print("oh", file=sys.stderr); pulumi.log.warn("hm")')
    assert ("info", "hello") in project.display.said
    assert ("info#err", "oh") in project.display.said
    assert ("warning", "hm") in project.display.said


def test_config_and_defaults(project: Project) -> None:
    (project.folder / "Pulumi.yaml").write_text("""
name: demo
runtime: python
config:
  size: {type: integer, default: 3}
  colour: {type: string, default: red}
  other:mode: {value: fast}
""")
    project.config("""
        config:
          demo:colour: blue
          demo:pools: [{name: a, count: 2}]
          demo:on: true
    """)
    project.up("""
        export("out", [
            config.require_int("size"), config.get("colour"), config.get_bool("on"),
            config.require_object("pools"), pulumi.Config("other").get("mode"),
        ])
    """)
    assert project.engine().outputs()["out"] == [
        3,
        "blue",
        True,
        [{"name": "a", "count": 2}],
        "fast",
    ]
