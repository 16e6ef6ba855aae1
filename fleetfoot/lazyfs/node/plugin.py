"""What nbdkit calls: all layers of a node behind one NBD server.

nbdkit loads this file through its Python plug-in (nbdkit-python-plugin(3)), whose names these are.
The name of an export is that of a layer's folder. The command line's parameters are the
fields of `Server`: `root`, `certs`, `deadline`, `rate`, `watermark`, `evict`, `stats`.
"""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbdkit  # there is such a module within nbdkit alone

from fleetfoot.lazyfs.node.server import Server

if TYPE_CHECKING:
    from fleetfoot.lazyfs.node.layer import Layer

API_VERSION = 2
_server = Server()


def config(key: str, value: str) -> None:
    """Take a parameter of nbdkit's command line."""
    takes: dict[str, Any] = {
        "root": Path,
        "certs": Path,
        "deadline": float,
        "rate": float,
        "watermark": float,
        "evict": float,
        "stats": Path,
    }
    if key not in takes:
        raise RuntimeError(f"unknown parameter {key!r}: known are {', '.join(takes)}")
    setattr(_server, key, takes[key](value))


def after_fork() -> None:
    """Begin what goes on in the background."""
    threading.Thread(target=_server.work, daemon=True).start()


def thread_model() -> int:
    """Let reads of one connection run side by side."""
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def list_exports(_readonly: int, _is_tls: int) -> list[tuple[str, str]]:
    """Return what can be served."""
    return [(name, "") for name in _server.names()]


def open(_readonly: int) -> Layer:  # noqa: A001  # nbdkit's name
    """Return the layer that a client asked for."""
    return _server.layer(nbdkit.export_name())


def get_size(layer: Layer) -> int:
    """Return the bytes of the sector image, a multiple of the file system's blocks."""
    return layer.table.length


def block_size(_layer: Layer) -> tuple[int, int, int]:
    """Return the smallest, preferred and largest request."""
    return 1, 64 << 10, 32 << 20


def can_multi_conn(_layer: Layer) -> bool:
    """Say that what one connection sees is what all see."""
    return True


def pread(layer: Layer, buffer: Any, offset: int, _flags: int) -> None:
    """Read into nbdkit's buffer."""
    try:
        buffer[:] = layer.read(offset, len(buffer))
    except OSError as error:
        nbdkit.set_error(error.errno or errno.EIO)
        raise
