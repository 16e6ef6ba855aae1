"""Package lists and SBOMs of a tree with a real dpkg database and a real Go program."""

import json
import shutil
from pathlib import Path

import pytest

from fleetfoot.images import sbom

STATUS = """\
Package: runc
Status: install ok installed
Maintainer: x <x@example.org>
Architecture: amd64
Version: 1.1.15+ds1-2
Description: x

Package: removed
Status: deinstall ok config-files
Maintainer: x <x@example.org>
Architecture: amd64
Version: 1
Description: x
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree/var/lib/dpkg"
    (folder / "info").mkdir(parents=True)
    (folder / "updates").mkdir()
    (folder / "status").write_text(STATUS)
    programs = tmp_path / "tree/usr/local/bin"
    programs.mkdir(parents=True)
    go = shutil.which("go")
    assert go
    shutil.copy2(go, programs / "program")
    (programs / "script").write_text("#!/bin/sh\n")
    return tmp_path / "tree"


def test_packages_programs_and_their_modules_are_found(tree: Path) -> None:
    found = sbom.components(tree)
    assert sbom.Component("deb", "runc", "1.1.15+ds1-2") in found
    assert not [c for c in found if c.name == "removed"]
    assert [c.name for c in found if c.kind == "program"] == ["program"]
    (stdlib,) = [c for c in found if c.name == "stdlib"]
    assert stdlib.part_of == "program"
    assert stdlib.version[0].isdigit()


def test_the_manifest_is_sorted_and_has_no_modules(tree: Path) -> None:
    lines = sbom.manifest(sbom.components(tree)).splitlines()
    assert lines == sorted(lines)
    assert [line.split("\t")[:2] for line in lines] == [["deb", "runc"], ["program", "program"]]


def test_the_same_tree_gives_the_same_spdx_document(tree: Path) -> None:
    first, second = (sbom.spdx("worker", "k", sbom.components(tree)) for _ in range(2))
    assert first == second


def test_every_relation_names_a_package_of_the_document(tree: Path) -> None:
    document = json.loads(sbom.spdx("worker", "k", sbom.components(tree)))
    known = {package["SPDXID"] for package in document["packages"]} | {"SPDXRef-DOCUMENT"}
    assert len(known) == len(document["packages"]) + 1
    for relation in document["relationships"]:
        assert {relation["spdxElementId"], relation["relatedSpdxElement"]} <= known
    assert document["spdxVersion"] == "SPDX-2.3"
    purls = [
        reference["referenceLocator"]
        for package in document["packages"]
        for reference in package.get("externalRefs", ())
    ]
    assert "pkg:deb/debian/runc@1.1.15+ds1-2?arch=amd64&distro=debian-13" in purls
