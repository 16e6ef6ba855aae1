"""What only the CLI does is refused by a sentence that names it, and nothing is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetfoot.engine import Engine, EngineError, UnsupportedError

from .conftest import Project


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ('Item("x", opts=Opts(import_="id"))', "import_"),
        ('Item("x", opts=Opts(transforms=[lambda args: None]))', "transforms"),
        ('pulumi.StackReference("organization/demo/other")', "StackReference"),
        ('Item.get if False else pulumi.runtime.invoke("aws:index:f", {})', "aws:index:f"),
        (
            'pulumi.CustomResource("aws:s3/bucket:Bucket", "x")',
            "provider 'aws'",
        ),
        (
            'pulumi.ComponentResource("aws:x:Remote", "x", {}, None, remote=True)',
            "remote component",
        ),
        ('Item("x", opts=Opts(replace_with=[Item("y")]))', "ReplaceWith"),
        (
            'Item("x", opts=Opts(hooks=pulumi.ResourceHookBinding(before_create=['
            'pulumi.ResourceHook("h", lambda args: None)])))',
            "resource hooks",
        ),
        ('Item("x", pulumi.FileArchive("."))', "archive"),
        ('Item("x", pulumi.StringAsset("text"))', "asset"),
    ],
)
def test_unsupported_request_is_refused(project: Project, body: str, what: str) -> None:
    summary = project.up(body)
    assert not summary.ok
    told = " ".join(summary.errors)
    assert what in told, told
    assert "Pulumi CLI" in told
    assert project.objects().keys() <= {"y"}


@pytest.mark.parametrize(
    ("yaml", "what"),
    [
        ("name: demo\nruntime: nodejs\n", "nodejs"),
        ("name: demo\nruntime: yaml\n", "yaml"),
        ("name: demo\nruntime: python\nplugins: {providers: []}\nplugins: [a]\n", "plugins"),
    ],
)
def test_unsupported_project_is_refused(project: Project, yaml: str, what: str) -> None:
    (project.folder / "Pulumi.yaml").write_text(yaml)
    with pytest.raises(UnsupportedError, match=what) as caught:
        project.engine()
    assert "Pulumi CLI" in str(caught.value)


def test_unsupported_backend_is_refused(project: Project) -> None:
    with pytest.raises(UnsupportedError, match="s3://"):
        Engine(project.folder, "dev", backend_url="s3://bucket", passphrase="")


def test_unsupported_secrets_provider_is_refused(project: Project) -> None:
    project.program("")
    project.config("secretsprovider: awskms://x")
    with pytest.raises(UnsupportedError, match="awskms"):
        project.engine().up()


@pytest.mark.parametrize(
    ("yaml", "match"),
    [("runtime: python\n", "no project name"), ("{", "cannot be read"), ("- a\n", "no mapping")],
)
def test_broken_project_is_told(project: Project, yaml: str, match: str) -> None:
    (project.folder / "Pulumi.yaml").write_text(yaml)
    with pytest.raises(EngineError, match=match):
        project.engine()


def test_missing_project_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Pulumi\.yaml"):
        Engine(tmp_path, "dev", backend_url=f"file://{tmp_path}", passphrase="")


def test_missing_configuration_is_told(project: Project) -> None:
    (project.folder / "Pulumi.yaml").write_text(
        "name: demo\nruntime: python\nconfig: {size: {type: integer}}\n"
    )
    project.program("")
    with pytest.raises(EngineError, match="missing configuration value 'size'"):
        project.engine().up()
