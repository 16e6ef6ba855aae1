"""What is in an image: a package list a person reads, and the same as SPDX for programs."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetfoot.shell import run

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Component", "components", "manifest", "spdx"]

_ELF = b"\x7fELF"
_CREATED = "2020-01-01T00:00:00Z"  # a build says when nowhere: the same inputs give the same file
# Where roles put programs that no Debian package owns.
_PROGRAM_FOLDERS = ("usr/local/bin", "usr/lib/cni")


@dataclass(frozen=True, order=True)
class Component:
    """One thing with a name and a version: a Debian package, a Go program, a Go module.

    Attributes:
        kind: `deb`, `program` or `golang`.
        name: Package, file or module name.
        version: Its version.
        part_of: The program that contains it; empty for packages and programs.
    """

    kind: str
    name: str
    version: str
    part_of: str = ""

    @property
    def purl(self) -> str:
        """The package URL."""
        if self.kind == "deb":
            return f"pkg:deb/debian/{self.name}@{self.version}?arch=amd64&distro=debian-13"
        return f"pkg:golang/{self.name}@{self.version}" if self.kind == "golang" else ""


def components(tree: Path) -> list[Component]:
    """Read a tree's dpkg database and the build information inside its Go programs."""
    argv = ["dpkg-query", f"--admindir={tree}/var/lib/dpkg", "-W"]
    argv += ["-f", "${db:Status-Status} ${Package} ${Version}\n"]
    shown = run(argv, consequence="the image has no package list")
    found = [
        Component("deb", name, version)
        for status, name, version in (line.split() for line in shown.splitlines())
        if status == "installed"
    ]
    for folder in _PROGRAM_FOLDERS:
        for path in sorted((tree / folder).glob("*")):
            if path.is_file() and not path.is_symlink() and _is_program(path):
                found += _go_program(path)
    return sorted(set(found))


def _is_program(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(_ELF)) == _ELF


def _go_program(path: Path) -> list[Component]:
    argv = ["go", "version", "-m", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        return [Component("program", path.name, "unknown")]
    first, *lines = done.stdout.splitlines()
    version, modules = "unknown", [("stdlib", first.rpartition(" ")[2].removeprefix("go"))]
    for _, kind, *words in (line.split("\t") for line in lines):
        if kind == "mod":
            version = words[1]
        elif kind == "=>":  # what is really in the program, instead of the line before
            modules[-1] = (words[0], words[1])
        elif kind == "dep":
            modules.append((words[0], words[1]))
    program = Component("program", path.name, version)
    return [program, *(Component("golang", *module, path.name) for module in modules)]


def manifest(found: list[Component]) -> str:
    """Return one line a package or program, sorted."""
    return "".join(f"{c.kind}\t{c.name}\t{c.version}\n" for c in found if not c.part_of)


def spdx(name: str, key: str, found: list[Component]) -> str:
    """Return an SPDX 2.3 document (JSON)."""
    packages: list[dict[str, Any]] = [_package("SPDXRef-image", name, key, "")]
    relations = [_relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image")]
    programs: dict[str, str] = {}
    for number, component in enumerate(sorted(found, key=lambda c: (c.kind != "program", c))):
        reference = f"SPDXRef-{number}"
        if component.kind == "program":
            programs[component.name] = reference
        packages.append(_package(reference, component.name, component.version, component.purl))
        parent = programs.get(component.part_of, "SPDXRef-image")
        relations.append(_relation(parent, "CONTAINS", reference))
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"fleetfoot-{name}",
        "documentNamespace": f"urn:fleetfoot:image:{name}:{key}",
        "creationInfo": {"created": _CREATED, "creators": ["Tool: fleetfoot"]},
        "packages": packages,
        "relationships": relations,
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _package(reference: str, name: str, version: str, purl: str) -> dict[str, Any]:
    package: dict[str, Any] = {
        "SPDXID": reference,
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
    }
    if purl:
        package["externalRefs"] = [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": purl,
            }
        ]
    return package


def _relation(source: str, kind: str, target: str) -> dict[str, str]:
    return {
        "spdxElementId": source,
        "relationshipType": kind,
        "relatedSpdxElement": target,
    }
