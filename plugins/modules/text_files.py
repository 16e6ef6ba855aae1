"""Ansible module: a folder's text files, written by one task."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: text_files
short_description: Write many small text files below a folder
description:
  - What a loop over C(ansible.builtin.copy) does, in one run on the machine; on an emulated guest
    each run takes seconds.
  - Each file is replaced as a whole. Files that are not named stay.
options:
  path:
    description: The folder; it and those below it are made, with mode 0755.
    type: path
    required: true
  contents:
    description: Content of each file, by its path below the folder.
    type: dict
    required: true
  mode:
    description: Mode of the files.
    type: str
    default: "0644"
author: [Fleetfoot maintainers]
"""

EXAMPLES = """
- name: Install a library
  text_files:
    path: /usr/local/lib/example
    contents:
      __init__.py: ""
      parts/one.py: "ONE = 1\\n"
"""

RETURN = """
written:
  description: Files that differed, or would be written in check mode.
  returned: success
  type: list
  elements: str
"""

ARGUMENTS: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "contents": {"type": "dict", "required": True},
    "mode": {"type": "str", "default": "0644"},
}


def outside(contents: dict[str, str]) -> list[str]:
    """Return names that are no plain paths below a folder."""
    return [
        name
        for name in contents
        if not name or name != str(PurePosixPath(name)) or {"..", "/", "."} & {*Path(name).parts}
    ]


def differs(file: Path, content: str, mode: int) -> bool:
    """Tell whether a file is to be written."""
    try:
        info = file.lstat()
        return info.st_mode != 0o100000 | mode or file.read_bytes() != content.encode()
    except (FileNotFoundError, NotADirectoryError):
        return True


def write(file: Path, content: str, mode: int) -> None:
    """Replace a file as a whole."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(content.encode())
            os.fchmod(opened.fileno(), mode)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    root, contents = Path(module.params["path"]), module.params["contents"]
    if wrong := outside(contents):
        module.fail_json(f"contents: {wrong[0]!r} is no path below {root}; nothing was written")
    mode = int(module.params["mode"], 8)
    folders = sorted({root, *(parent for name in contents for parent in (root / name).parents)})
    folders = [folder for folder in folders if folder.is_relative_to(root)]
    missing = [folder for folder in folders if not folder.is_dir()]
    loose = [
        folder for folder in folders if folder not in missing and folder.stat().st_mode & 0o022
    ]
    written = [name for name in contents if differs(root / name, contents[name], mode)]
    if not module.check_mode:
        for folder in missing:
            folder.mkdir(parents=True, exist_ok=True)
        for folder in missing + loose:
            folder.chmod(0o755)
        for name in written:
            write(root / name, contents[name], mode)
    told = [{"before_header": name, "after_header": name} for name in written]
    changed = bool(written or missing or loose)
    module.exit_json(changed=changed, written=written, diff=told)


if __name__ == "__main__":
    main()
