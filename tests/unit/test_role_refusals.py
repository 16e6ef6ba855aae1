"""What roles refuse before they change anything, and that they say which variable to correct.

The cases are in role_refusals.yml and run in one ansible-playbook, which includes the preflight of
each one's role with its variables.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
CASES: list[dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("role_refusals.yml").read_text()
)


def playbook(folder: Path, result: Path) -> list[dict[str, Any]]:
    """One play: each case in a block whose rescue keeps what was said."""
    tasks: list[dict[str, Any]] = []
    for number, case in enumerate(CASES):
        include = {
            "ansible.builtin.include_role": {"name": case["role"], "tasks_from": "preflight"},
            "vars": {"folder": str(case_folder(folder, number)), **case["vars"]},
        }
        said = f"{{{{ said | combine({{'{number}': ansible_failed_result | to_json}}) }}}}"
        rescue = {"ansible.builtin.set_fact": {"said": said}}
        tasks.append({"block": [include], "rescue": [rescue]})
    report = {"content": "{{ said | to_json }}", "dest": str(result), "mode": "0600"}
    tasks.append({"ansible.builtin.copy": report})
    play = {"hosts": "localhost", "gather_facts": False, "vars": {"said": {}}, "tasks": tasks}
    return [play]


def case_folder(folder: Path, number: int) -> Path:
    """Where the files of a case are."""
    return folder / f"case-{number}"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("refusals")
    result = folder / "said.json"
    for number, case in enumerate(CASES):
        for name, content in case.get("files", {}).items():
            case_folder(folder, number).mkdir(exist_ok=True)
            (case_folder(folder, number) / name).write_text(content)
    (folder / "play.yml").write_text(yaml.safe_dump(playbook(folder, result)))
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            *("-i", "localhost,", "-c", "local", str(folder / "play.yml")),
        ],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, str] = json.loads(result.read_text())
    return found


IDS = [f"{case['role']}-{case['case']}" for case in CASES]


@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_preflight(number: int, said: dict[str, str]) -> None:
    word = CASES[number]["says"]
    if word:
        assert str(number) in said, "it was accepted"
        assert word in said[str(number)]
    else:
        assert str(number) not in said, said[str(number)]
