"""Ansible module: a folder's text files, written by one task."""

from __future__ import annotations

import os
import stat
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
  - Each file is replaced as a whole. Files that are not named stay. All belong to who runs it.
options:
  path:
    description: The folder; it, those below it and those above it that are missing have mode 0755.
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

FOLDER = 0o755
ARGUMENTS: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "contents": {"type": "dict", "required": True},
    "mode": {"type": "str", "default": "0644"},
}


def outside(contents: dict[str, str]) -> list[str]:
    """Return names that are no plain paths below a folder."""
    bad = {"..", "/", "."}
    return [
        name
        for name in contents
        if name in {"", "."} or name != str(PurePosixPath(name)) or bad & {*Path(name).parts}
    ]


def is_mine(info: os.stat_result, mode: int) -> bool:
    """Tell whether mode and owner are what they should be."""
    return info.st_mode == mode and (info.st_uid, info.st_gid) == (os.geteuid(), os.getegid())


def differs(file: Path, content: str, mode: int) -> bool:
    """Tell whether a file is to be written."""
    try:
        mine = is_mine(file.lstat(), stat.S_IFREG | mode)
        return not mine or file.read_bytes() != content.encode()
    except (FileNotFoundError, NotADirectoryError):
        return True


def is_right(folder: Path) -> bool:
    """Tell whether a folder is there as it should be."""
    return folder.is_dir() and is_mine(folder.stat(), stat.S_IFDIR | FOLDER)


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
    if names := outside(contents):
        module.fail_json(f"contents: {names[0]!r} is no path below {root}; nothing was written")
    mode = int(module.params["mode"], 8)
    above = [root, *(parent for name in contents for parent in (root / name).parents)]
    folders = sorted(
        {folder for folder in above if folder.is_relative_to(root)}
        | {folder for folder in root.parents if not folder.exists()}
    )
    wrong = [folder for folder in folders if not is_right(folder)]
    written = [name for name in contents if differs(root / name, contents[name], mode)]
    if not module.check_mode:
        for folder in wrong:  # those above come first
            folder.mkdir(exist_ok=True)
            folder.chmod(FOLDER)
            os.chown(folder, os.geteuid(), os.getegid())
        for name in written:
            write(root / name, contents[name], mode)
    told = [{"before_header": name, "after_header": name} for name in written]
    changed = bool(written or wrong)
    module.exit_json(changed=changed, written=written, diff=told)


if __name__ == "__main__":
    main()
