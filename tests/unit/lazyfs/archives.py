"""Archives of layers, entry by entry."""

from __future__ import annotations

import io
import tarfile
from typing import Any

__all__ = ["archive"]


def archive(*entries: tuple[str, dict[str, Any]], data: bytes = b"") -> bytes:
    """Make an archive.

    Args:
        entries: Names, and fields of `TarInfo` that are not the default; `data` is an own content.
        data: What files hold that say nothing else.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, settings in entries:
            content = settings.get("data", data)
            info = tarfile.TarInfo(name)
            for key, value in settings.items():
                if key != "data":
                    setattr(info, key, value)
            info.size = len(content) if info.isreg() else 0
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()
