"""The Go programs of tools/: built once per content, kept in the user's cache.

Source of the build: `tools/<folder>/go.mod` pins versions, `tools/programs.yml` names programs and
link-time stamps. A build's key is the hash of both and of the Go version, so a changed pin builds
anew and an unchanged one never does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from fleetfoot.errors import FleetfootError
from fleetfoot.locks import alone
from fleetfoot.paths import PROJECT, cache_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = [
    "Module",
    "bench_program",
    "build",
    "directory",
    "earlier_directory",
    "modules",
    "program",
    "reported_version",
]

_NODES, _BENCHES, _REHEARSALS = "nodes", "benches", "rehearsals"
_PROGRESS_EVERY = 100  # packages
_ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "-trimpath -buildvcs=false", "GOTOOLCHAIN": "auto"}
_REMOVABLE = " -modcacherw"  # or the modules' folder could not be removed


@dataclass(frozen=True)
class Module:
    """One folder of tools/.

    Attributes:
        folder: Its name below tools/.
        version: Pinned version, as `v1.2.3`.
        programs: Program to Go package.
        stamp: Link-time variable to value.
        tells: Program to the arguments that print its version.
        key: Content key of the build.
    """

    folder: str
    version: str
    programs: dict[str, str]
    stamp: dict[str, str]
    tells: dict[str, list[str]]
    key: str

    @property
    def out(self) -> Path:
        """Where its built programs are."""
        return cache_dir() / "programs" / f"{self.folder}-{self.version}-{self.key}"

    @property
    def built(self) -> bool:
        """Whether every program is there."""
        return all((self.out / program).exists() for program in self.programs)


@contextlib.contextmanager
def _go() -> Iterator[dict[str, str]]:
    """Lend the environment of Go commands: no cgo, no machine paths in programs, caches that go.

    Sources and objects are gigabytes. What a killed build left is taken up by the next one; whoever
    sets GOCACHE or GOMODCACHE keeps theirs.
    """
    folder = cache_dir() / "go"
    own = {"GOCACHE": str(folder / "build"), "GOMODCACHE": str(folder / "modules")}
    flags = _ENVIRONMENT["GOFLAGS"] + _REMOVABLE  # which change no program: they are in no key
    yield {**own, **os.environ, **_ENVIRONMENT, "GOFLAGS": flags}
    shutil.rmtree(folder, ignore_errors=True)


def modules(purpose: str = _NODES) -> list[Module]:
    """Return the modules of tools/programs.yml that serve a purpose.

    Args:
        purpose: `nodes` (what machines run), `benches` (what loads them), `rehearsals` (what
            upgrades begin from) or `tests` (what they ask).

    Raises:
        FleetfootError: A go.mod does not pin the module that programs.yml names.
    """
    tools = PROJECT / "tools"
    listed: dict[str, dict[str, Any]] = yaml.safe_load((tools / "programs.yml").read_text())
    return [
        _module(tools / folder, entry)
        for folder, entry in listed.items()
        if entry.get("for", _NODES) == purpose
    ]


def _module(folder: Path, entry: dict[str, Any]) -> Module:
    pins = (folder / "go.mod").read_text()
    found = re.search(rf"^(?:require|\t)\s*{re.escape(entry['module'])} (v\S+)", pins, re.MULTILINE)
    if not found:
        raise FleetfootError(
            f"tools/{folder.name}/go.mod does not require {entry['module']}",
            "its version is unknown, so nothing is built",
            f"run `go get {entry['module']}@VERSION` in tools/{folder.name}",
        )
    version = found[1]
    major, minor = version.removeprefix("v").split(".")[:2]
    words = {"version": version, "bare": version[1:], "major": major, "minor": minor}
    stamp = {name: value.format(**words) for name, value in entry["stamp"].items()}
    default = entry["tells"].get("default", [])
    # Those that are ours beside those that the pins name.
    sources = [path.read_text() for path in sorted(folder.glob("*.go"))]
    content = json.dumps([pins, (folder / "go.sum").read_text(), entry, _ENVIRONMENT, *sources])
    return Module(
        folder=folder.name,
        version=version,
        programs=entry["programs"],
        stamp=stamp,
        tells={name: entry["tells"].get(name, default) for name in entry["programs"]},
        key=hashlib.sha256(content.encode()).hexdigest()[:12],
    )


def build(progress: Callable[[str], None], purpose: str = _NODES) -> bool:
    """Build what is not in the cache; return whether anything was built.

    Args:
        progress: Takes one line at a time for a person to follow.
        purpose: Which modules, as `modules` takes it.

    Raises:
        FleetfootError: Go is absent, or a build failed; the message carries the compiler's words.
    """
    return _ensure(modules(purpose), progress)


def _ensure(wanted: list[Module], progress: Callable[[str], None]) -> bool:
    todo = [module for module in wanted if not module.built]
    if not todo:
        return False  # and nobody who builds others is waited for
    programs = sum(len(module.programs) for module in todo)
    progress(f"building {programs} programs of {len(todo)} Go modules (once; then cached)")
    cache_dir().mkdir(parents=True, exist_ok=True)
    with alone(cache_dir() / "programs.lock"), _go() as environment:
        for module in todo:
            if not module.built:
                _build_module(module, environment, progress)
    return True


def _build_module(
    module: Module, environment: dict[str, str], progress: Callable[[str], None]
) -> None:
    temporary = module.out.with_name(f".{module.out.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    flags = " ".join(["-s -w", *(f"-X {name}={value}" for name, value in module.stamp.items())])
    try:
        for program, package in module.programs.items():
            target = temporary / program
            argv = ["go", "build", "-v", "-ldflags", flags, "-o", str(target), package]
            progress(f"{program} {module.version}: compiling")
            for count in _compile(argv, PROJECT / "tools" / module.folder, environment):
                progress(f"{program} {module.version}: {count} packages compiled")
            says = reported_version(module, program, temporary)
            if module.version.removeprefix("v") not in says:
                raise FleetfootError(
                    f"{program} was built from {module.version} but says {says.strip()!r}",
                    "nobody could tell what a node runs",
                    "correct `stamp` or `tells` in tools/programs.yml",
                )
            progress(f"{program} {module.version}: {target.stat().st_size >> 20} MiB")
        if module.out.exists():  # half of an earlier build of the same content
            shutil.rmtree(module.out)
        temporary.rename(module.out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _compile(argv: list[str], folder: Path, environment: dict[str, str]) -> Iterator[int]:
    """Run `go build -v`, giving the number of compiled packages from time to time."""
    try:
        process = subprocess.Popen(
            argv, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        )
    except FileNotFoundError as missing:
        raise FleetfootError(
            "Go is not installed", "the node software cannot be built", "run `make up`"
        ) from missing
    lines: list[str] = []
    with process:
        for count, line in enumerate(process.stderr or [], 1):
            lines.append(line)
            if count % _PROGRESS_EVERY == 0:
                yield count
    if process.returncode:
        raise FleetfootError(
            f"building {argv[-1]} failed: {''.join(lines[-20:]).strip()}",
            "the node software is incomplete",
            "mend the cause (disk full? registry unreachable?) and run the command again",
        )


def bench_program(name: str, progress: Callable[[str], None]) -> Path:
    """Return a program that loads a cluster; built now unless the cache has it.

    Args:
        name: A program of a module for benches.
        progress: Takes one line at a time for a person to follow.
    """
    return program(name, _BENCHES, progress)


def program(name: str, purpose: str, progress: Callable[[str], None]) -> Path:
    """Return a program that no node has; built now unless the cache has it.

    Args:
        name: Its name.
        purpose: Of its module, as `modules` takes it.
        progress: Takes one line at a time for a person to follow.
    """
    build(progress, purpose)
    return next(m.out / name for m in modules(purpose) if name in m.programs)


def directory() -> Path:
    """Return one folder with nodes' programs, as hard links; made anew when one changes.

    Raises:
        FleetfootError: Something is not built yet.
    """
    return _joined(modules())


def earlier_directory(folder: str, progress: Callable[[str], None]) -> Path:
    """Return nodes' programs with those of an earlier version among them; built now if need be.

    Args:
        folder: Of tools/, for rehearsals.
        progress: Takes one line at a time for a person to follow.
    """
    module = next(module for module in modules(_REHEARSALS) if module.folder == folder)
    _ensure([module], progress)
    others = [each for each in modules() if not module.programs.keys() & each.programs.keys()]
    return _joined([*others, module])


def _joined(every: list[Module]) -> Path:
    for module in every:
        if not module.built:
            raise FleetfootError(
                f"the programs of tools/{module.folder} are not built",
                "images and nodes would lack them",
                "run `make host`",
            )
    key = hashlib.sha256("".join(sorted(m.folder + m.key for m in every)).encode()).hexdigest()
    folder = cache_dir() / "programs" / f"all-{key[:12]}"
    if folder.exists():
        return folder
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    for module in every:
        for program in module.programs:
            os.link(module.out / program, temporary / program)
    versions = {program: module.version for module in every for program in module.programs}
    (temporary / "versions.json").write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n")
    temporary.rename(folder)
    return folder


def reported_version(module: Module, program: str, folder: Path) -> str:
    """Return what a built program says of its own version, on whichever stream."""
    argv = [str(folder / program), *module.tells[program]]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr
