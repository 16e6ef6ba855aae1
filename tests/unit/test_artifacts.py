from __future__ import annotations

import json
from pathlib import Path

import pytest

from fleetfoot import artifacts
from fleetfoot.errors import FleetfootError

PROGRAMS = [(module, program) for module in artifacts.modules() for program in module.programs]


@pytest.mark.parametrize(("module", "program"), PROGRAMS, ids=[program for _, program in PROGRAMS])
def test_a_program_says_its_pinned_version(module: artifacts.Module, program: str) -> None:
    said = artifacts.reported_version(module, program, artifacts.directory())
    assert module.version.removeprefix("v") in said


def test_what_benches_and_tests_need_is_on_no_node() -> None:
    others = {
        program
        for purpose in ("benches", "tests")
        for module in artifacts.modules(purpose)
        for program in module.programs
    }
    assert others == {"k6", "kwok", "registry"}
    assert others.isdisjoint(program for _, program in PROGRAMS)
    assert not any((artifacts.directory() / program).exists() for program in others)


def test_a_program_of_benches_is_found_where_it_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETFOOT_CACHE", str(tmp_path))
    for module in artifacts.modules("benches"):
        module.out.mkdir(parents=True)
        for program in module.programs:
            (module.out / program).touch()
    said: list[str] = []
    found = artifacts.bench_program("k6", said.append)
    assert found.is_relative_to(tmp_path)
    assert found.name == "k6"
    assert not said


def test_upgrades_are_rehearsed_from_earlier_versions_of_the_same_programs() -> None:
    (current,) = (m for m in artifacts.modules() if m.folder == "kubernetes")
    earlier = {m.folder: m for m in artifacts.modules("rehearsals")}
    assert set(earlier) == {"kubernetes-1.36", "kubernetes-1.35"}
    for folder, module in earlier.items():
        assert module.programs == current.programs
        assert module.version.startswith(f"v{folder.partition('-')[2]}.")
        assert module.version != current.version


def test_an_earlier_version_stands_in_for_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETFOOT_CACHE", str(tmp_path))
    for module in (*artifacts.modules(), *artifacts.modules("rehearsals")):
        module.out.mkdir(parents=True)
        for program in module.programs:
            (module.out / program).write_text(module.version)
    folder = artifacts.earlier_directory("kubernetes-1.35", print)
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["kubelet"].startswith("v1.35.")
    assert (folder / "kubelet").read_text() == versions["kubelet"]
    assert versions["etcd"] == (artifacts.directory() / "etcd").read_text()
    assert folder != artifacts.directory()


def test_gos_caches_go_when_the_programs_are_built_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETFOOT_CACHE", str(tmp_path))
    for name in ("GOCACHE", "GOMODCACHE"):
        monkeypatch.delenv(name, raising=False)

    def build(_: artifacts.Module, environment: dict[str, str], __: object) -> None:
        for name in ("GOCACHE", "GOMODCACHE"):
            folder = Path(environment[name])
            assert folder.is_relative_to(tmp_path)
            folder.mkdir(parents=True, exist_ok=True)
        if fails:
            raise FleetfootError("no", "no")

    monkeypatch.setattr(artifacts, "_build_module", build)
    fails = True
    with pytest.raises(FleetfootError):
        artifacts.build(print)
    assert (tmp_path / "go").exists()
    fails = False
    artifacts.build(print)
    assert not (tmp_path / "go").exists()
