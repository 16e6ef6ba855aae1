"""apt sources of images follow the host's."""

from pathlib import Path

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.images import apt

DEB822 = """\
# the host's mirror
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
 bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://vendor.example/
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://old.example/
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/
Suites: bookworm
Components: main
"""

ONE_LINE = """\
# deb http://comment.example bookworm main
deb [arch=amd64 signed-by=/usr/keyrings/m.gpg] http://mirror.example/debian bookworm main non-free
deb-src http://mirror.example/debian bookworm main
deb http://short.example bookworm
deb http://mirror.example/debian bookworm-security main # trailing
"""


def derive(sources: list[apt.Source]) -> list[apt.Source]:
    return apt.for_suite(sources, host_suite="bookworm", suite="trixie")


def test_deb822_keeps_mirror_and_drops_backports_vendors_and_disabled() -> None:
    derived = derive(apt.parse_deb822(DEB822))
    assert [(s.uris, s.suites) for s in derived] == [
        (("http://mirror.example/debian",), ("trixie", "trixie-updates")),
        (("http://mirror.example/security",), ("trixie-security",)),
    ]
    assert derived[1].components == ("main", "contrib")


def test_key_inside_the_file_is_replaced_by_the_keyring() -> None:
    assert apt.parse_deb822(DEB822)[1].signed_by.endswith("debian-archive-keyring.gpg")


def test_one_line_format() -> None:
    first, second = apt.parse_one_line(ONE_LINE)
    assert first.signed_by == "/usr/keyrings/m.gpg"
    assert first.components == ("main", "non-free")
    assert second.suites == ("bookworm-security",)
    assert second.components == ("main",)


def test_equal_archives_are_asked_once(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://mirror.example/debian bookworm main\n")
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "a.list").write_text("deb http://mirror.example/debian bookworm main\n")
    (parts / "ignored.list.disabled").write_text("deb http://x.example bookworm main\n")
    assert len(derive(apt.read_sources(tmp_path))) == 1


def test_no_archive_of_the_release_names_the_fix() -> None:
    with pytest.raises(FleetfootError, match="Suites: bookworm"):
        derive(apt.parse_one_line("deb http://mirror.example bullseye main\n"))


def test_security_alone_is_not_enough() -> None:
    with pytest.raises(FleetfootError):
        derive(apt.parse_one_line("deb http://mirror.example bookworm-security main\n"))


def test_rendered_sources_parse_back() -> None:
    derived = derive(apt.parse_deb822(DEB822))
    assert apt.parse_deb822("\n".join(source.render() for source in derived)) == derived


def test_acquire_settings_are_those_of_transport_alone() -> None:
    dump = (
        'APT::Architecture "amd64";\nAcquire::http::Proxy "http://proxy.example:3128";\n'
        'Acquire::Check-Valid-Until "false";\nAcquire::IndexTargets::deb::X "1";\n'
        'Acquire::AllowInsecureRepositories "1";\nDPkg::Post-Invoke:: "x";\n'
    )
    assert apt.acquire_settings(dump).splitlines() == [
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'Acquire::Check-Valid-Until "false";',
    ]


def test_tree_holds_credentials_and_replaces_mkosis_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etc, tree = tmp_path / "apt", tmp_path / "tree"
    (etc / "auth.conf.d").mkdir(parents=True)
    secret = etc / "auth.conf.d/mirror.conf"
    secret.write_text("machine mirror.example login a password b\n")
    secret.chmod(0o600)
    (etc / "sources.list").write_text("deb http://mirror.example/debian bookworm main\n")
    monkeypatch.setattr(apt, "host_suite", lambda: "bookworm")
    apt.write_package_manager_tree(tree, suite="trixie", apt_dir=etc)
    sources = (tree / "etc/apt/sources.list.d/mkosi.sources").read_text()
    assert "Suites: trixie\n" in sources
    assert (tree / "etc/apt/auth.conf.d/mirror.conf").stat().st_mode & 0o777 == 0o600


def test_host_suite_is_read_or_refused(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    assert apt.host_suite(release) == "bookworm"
    release.write_text("ID=other\n")
    with pytest.raises(FleetfootError, match="VERSION_CODENAME"):
        apt.host_suite(release)
