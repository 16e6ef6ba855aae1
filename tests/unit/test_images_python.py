"""Packages of an image's own Python are compiled for good."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from fleetfoot.images.python import COMPILE

if TYPE_CHECKING:
    from pathlib import Path


def test_what_was_compiled_is_used_whatever_the_times_of_files(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    module = tmp_path / "package/module.py"
    module.write_text("print('compiled')\n")
    (tmp_path / "package/template.py").write_text("{{ no Python }}\n")
    subprocess.run([sys.executable, "-c", COMPILE, str(tmp_path)], check=True)
    # Archives of layers round times; and Python would compile what is newer.
    os.utime(module, (1, 1))
    module.write_text("print('read')\n")
    argv = [sys.executable, "-B", "-c", "import package.module"]
    done = subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == "compiled\n"
