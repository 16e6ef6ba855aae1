"""README of each role, written from its meta/argument_specs.yml.

`.venv/bin/python tools/role_docs.py` writes what is not current; `--check` names it and fails.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parent.parent / "roles"
_MARKUP = re.compile(r"\b[COMVE]\(((?:[^()]|\([^()]*\))*)\)")
# Longer defaults stand below the table.
_INLINE = 60


def render(role: Path) -> str:
    """Return the README of the role in this folder."""
    specs: dict[str, Any] = yaml.safe_load((role / "meta/argument_specs.yml").read_text())
    entries: dict[str, Any] = specs["argument_specs"]
    main = entries["main"]
    parts = [
        f"# {role.name}",
        "<!-- Written by tools/role_docs.py from meta/argument_specs.yml: change it there. -->\n"
        f"{_prose(main['short_description'])}.",
        *_paragraphs(main),
        "## Variables",
        *_variables(main.get("options") or {}),
    ]
    for name, entry in entries.items():
        if name != "main":
            parts += [
                f"## Entry point `{name}`",
                f"{_prose(entry['short_description'])} (`tasks_from: {name}`).",
                *_paragraphs(entry),
                *_variables(_own(entry, main)),
            ]
    parts += _stages(role)
    parts += ["## Test", f"    cd roles/{role.name} && molecule test"]
    return "\n\n".join(parts) + "\n"


def _prose(text: str) -> str:
    """Replace Ansible's markup by Markdown's."""
    return _MARKUP.sub(r"`\1`", " ".join(text.split())).removesuffix(".")


def _sentence(text: Any) -> str:
    lines = text if isinstance(text, list) else [text]
    return " ".join(f"{_prose(str(line))}." for line in lines)


def _paragraphs(entry: dict[str, Any]) -> list[str]:
    return [_sentence(entry["description"])] if "description" in entry else []


def _own(entry: dict[str, Any], main: dict[str, Any]) -> dict[str, Any]:
    """Options that the entry point does not share with `main`."""
    shared = main.get("options") or {}
    options: dict[str, Any] = entry.get("options") or {}
    return {name: spec for name, spec in options.items() if spec != shared.get(name)}


def _variables(options: dict[str, Any]) -> list[str]:
    if not options:
        return ["None of its own."]
    rows = ["| variable | type | default | what |", "|---|---|---|---|"]
    below: list[str] = []
    for name, spec in options.items():
        default = _default(spec)
        if len(default) > _INLINE:
            text = yaml.safe_dump(spec["default"], sort_keys=False, width=95).strip()
            below.append(f"Default of `{name}`:\n\n```yaml\n{text}\n```")
            default = "below"
        rows.append(f"| `{name}` | {_type(spec)} | {default} | {_cell(spec)} |")
        rows += _nested(name, spec)
    return ["\n".join(rows), *below]


def _nested(parent: str, spec: dict[str, Any]) -> list[str]:
    """Rows of the keys of a dict, or of the dicts in a list."""
    rows = []
    separator = "[]." if spec.get("type") == "list" else "."
    for key, inner in (spec.get("options") or {}).items():
        path = f"{parent}{separator}{key}"
        rows.append(f"| `{path}` | {_type(inner)} | {_default(inner)} | {_cell(inner)} |")
        rows += _nested(path, inner)
    return rows


def _type(spec: dict[str, Any]) -> str:
    kind = spec.get("type", "str")
    return f"list of {spec['elements']}" if kind == "list" and "elements" in spec else str(kind)


def _default(spec: dict[str, Any]) -> str:
    if spec.get("required"):
        return "**required**"
    if "default" not in spec:
        return ""
    value = spec["default"]
    if value == "":
        return "empty"
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return "`" + text.strip().removesuffix("...").strip().replace("|", "\\|") + "`"


def _cell(spec: dict[str, Any]) -> str:
    text = _sentence(spec.get("description", ""))
    if "choices" in spec:
        text += f" One of {', '.join(f'`{choice}`' for choice in spec['choices'])}."
    return text.replace("|", "\\|")


def _stages(role: Path) -> list[str]:
    """The tags by which one stage can be run."""
    tasks = yaml.safe_load((role / "tasks/main.yml").read_text()) or []
    stages = [tag for task in tasks for tag in task.get("tags", []) if tag != role.name]
    if not stages:
        return []
    listed = ", ".join(f"`{stage}`" for stage in dict.fromkeys(stages))
    return ["## Tags", f"`{role.name}` for all of it; stages: {listed}."]


def main() -> int:
    """Write, or with --check compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail on a stale file")
    options = parser.parse_args()
    stale = []
    for specs in sorted(ROLES.glob("*/meta/argument_specs.yml")):
        role = specs.parents[1]
        readme = role / "README.md"
        text = render(role)
        if not readme.exists() or readme.read_text() != text:
            stale.append(role.name)
            if not options.check:
                readme.write_text(text)
    if options.check and stale:
        print(
            f"not current: README.md of {', '.join(stale)}; readers would set variables that are"
            " not there. Run .venv/bin/python tools/role_docs.py",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
