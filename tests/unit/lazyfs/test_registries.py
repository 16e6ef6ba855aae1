"""Services of lazy images have asked their registries before the first image comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetfoot.lazyfs.node import registries
from tests.unit.lazyfs.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def described(certs: Path, registry: Registry, *, trusted: bool) -> None:
    """Describe a registry as a node has it."""
    (folder := certs / registry.host).mkdir(parents=True)
    hosts = f'[host."{registry.url}"]\nca = "{registry.authority}"\n'
    (folder / "hosts.toml").write_text(hosts)
    if trusted:
        (folder / registries.TRUSTED).touch()


def test_registries_that_are_believed_are_asked_until_they_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registries, "_PAUSE", 0.01)
    (tmp_path / "other").mkdir()
    with Registry(tmp_path, drop=2) as registry, Registry(tmp_path / "other") as other:
        described(tmp_path / "certs", registry, trusted=True)
        described(tmp_path / "certs", other, trusted=False)
        thread = registries.warm(tmp_path / "certs")
        thread.join(30)
        assert not thread.is_alive()
        assert registry.drop == 0
        assert [method for method, *_ in registry.seen] == ["HEAD"] * 3
        assert not other.seen
