"""apt sources for images, derived from the host's own apt configuration.

An image is built from the archives the host itself uses (a mirror, a proxy, a snapshot), with the
suite changed to the image's release. No archive's address is part of the project.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.shell import run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Source",
    "acquire_settings",
    "for_suite",
    "host_suite",
    "parse_deb822",
    "parse_one_line",
    "read_sources",
    "write_package_manager_tree",
]

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# How apt reaches the archives; everything else in the host's configuration is the host's business.
_ACQUIRE_PREFIXES = (
    "Acquire::Check-",
    "Acquire::Retries",
    "Acquire::ftp",
    "Acquire::http",
    "Acquire::https",
)
# What an image takes from an archive, besides the release itself.
_POCKETS = ("", "-updates", "-security")
# Address, suite, at least one component.
_FEWEST_WORDS = 3


@dataclass(frozen=True)
class Source:
    """One archive as apt knows it."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = _KEYRING

    def render(self) -> str:
        """The deb822 paragraph."""
        return (
            "Types: deb\n"
            f"URIs: {' '.join(self.uris)}\n"
            f"Suites: {' '.join(self.suites)}\n"
            f"Components: {' '.join(self.components)}\n"
            f"Signed-By: {self.signed_by}\n"
        )


def parse_deb822(text: str) -> list[Source]:
    """Enabled binary archives of a `.sources` file."""
    sources = []
    for paragraph in _paragraphs(text):
        enabled = paragraph.get("enabled", "yes").lower() not in ("no", "false", "0", "off")
        if not enabled or "deb" not in paragraph.get("types", "").split():
            continue
        signed_by = paragraph.get("signed-by", "")
        sources.append(
            Source(
                uris=tuple(paragraph.get("uris", "").split()),
                suites=tuple(paragraph.get("suites", "").split()),
                components=tuple(paragraph.get("components", "").split()),
                # A key written into the file itself is the old release's; the keyring has both.
                signed_by=signed_by if signed_by.startswith("/") else _KEYRING,
            )
        )
    return sources


def _paragraphs(text: str) -> Iterable[dict[str, str]]:
    fields: dict[str, str] = {}
    name = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] in " \t":
            fields[name] = f"{fields.get(name, '')} {line.strip()}".strip()
        else:
            key, _, value = line.partition(":")
            name = key.strip().lower()
            fields[name] = value.strip()


def parse_one_line(text: str) -> list[Source]:
    """Enabled binary archives of a `.list` file."""
    sources = []
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if not line.startswith(("deb ", "deb\t")):
            continue
        rest = line[len("deb") :].strip()
        options: dict[str, str] = {}
        if rest.startswith("["):
            inside, _, rest = rest[1:].partition("]")
            options = dict(word.split("=", 1) for word in inside.split() if "=" in word)
        words = rest.split()
        if len(words) < _FEWEST_WORDS:
            continue
        signed_by = options.get("signed-by", "")
        sources.append(
            Source(
                uris=(words[0],),
                suites=(words[1],),
                components=tuple(words[2:]),
                signed_by=signed_by if signed_by.startswith("/") else _KEYRING,
            )
        )
    return sources


def read_sources(apt_dir: Path) -> list[Source]:
    """All archives that the apt configuration in this folder names, in apt's order."""
    sources: list[Source] = []
    main = apt_dir / "sources.list"
    if main.is_file():
        sources += parse_one_line(main.read_text())
    parts = apt_dir / "sources.list.d"
    for path in sorted(parts.iterdir()) if parts.is_dir() else ():
        if path.suffix == ".sources":
            sources += parse_deb822(path.read_text())
        elif path.suffix == ".list":
            sources += parse_one_line(path.read_text())
    return sources


def for_suite(sources: Sequence[Source], *, host_suite: str, suite: str) -> list[Source]:
    """The host's Debian archives, asked for another release.

    Archives of other vendors and the backports are left out: an image holds one release.
    """
    wanted = {f"{host_suite}{pocket}": f"{suite}{pocket}" for pocket in _POCKETS}
    derived: list[Source] = []
    for source in sources:
        suites = tuple(wanted[name] for name in source.suites if name in wanted)
        if suites and (found := replace(source, suites=suites)) not in derived:
            derived.append(found)
    if not any(suite in source.suites for source in derived):
        raise FleetfootError(
            f"no enabled apt source of the host names the suite {host_suite}",
            f"no image of {suite} can be built: its archives are derived from the host's",
            f"add the release's main archive to /etc/apt/sources.list.d (Suites: {host_suite})",
        )
    return derived


def acquire_settings(apt_config_dump: str) -> str:
    """Proxies, retries and validity checks out of `apt-config dump`, as an apt.conf."""
    lines = [line for line in apt_config_dump.splitlines() if line.startswith(_ACQUIRE_PREFIXES)]
    return "".join(f"{line}\n" for line in lines)


def host_suite(os_release: Path = Path("/etc/os-release")) -> str:
    """The host's release name (VERSION_CODENAME)."""
    for line in os_release.read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip().strip('"')
    raise FleetfootError(
        f"{os_release} names no VERSION_CODENAME",
        "no image can be built: the host's archives cannot be told from other vendors'",
        "use a released Debian",
    )


def write_package_manager_tree(
    directory: Path, *, suite: str, apt_dir: Path = Path("/etc/apt")
) -> None:
    """Write what mkosi needs to build a release from the host's archives.

    Give the folder to mkosi as `--package-manager-tree` (24.x) or `--sandbox-tree` (25 and newer).
    The file's name replaces mkosi's own sources, which name archives that mirrors lack.
    """
    derived = for_suite(read_sources(apt_dir), host_suite=host_suite(), suite=suite)
    target = directory / "etc/apt"
    for folder in ("sources.list.d", "apt.conf.d", "auth.conf.d"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    text = "\n".join(source.render() for source in derived)
    (target / "sources.list.d/mkosi.sources").write_text(text)
    dump = run(["apt-config", "dump"], consequence="no image can be built")
    (target / "apt.conf.d/90-host").write_text(acquire_settings(dump))
    for credentials in _credential_files(apt_dir):
        shutil.copy2(credentials, target / "auth.conf.d" / credentials.name)


def _credential_files(apt_dir: Path) -> Iterable[Path]:
    parts = apt_dir / "auth.conf.d"
    candidates = [apt_dir / "auth.conf", *(sorted(parts.iterdir()) if parts.is_dir() else ())]
    return (path for path in candidates if path.is_file())


def backports_source(apt_dir: Path) -> Source:
    """The backports suite of the host's release, in the archive of the release itself."""
    release = host_suite()
    own = for_suite(read_sources(apt_dir), host_suite=release, suite=release)
    main = next(source for source in own if release in source.suites)
    return replace(main, suites=(f"{release}-backports",))
