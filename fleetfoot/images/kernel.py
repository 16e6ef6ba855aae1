"""The kernel as an ELF program, for hypervisors that start it directly (PVH).

Debian ships a compressed bzImage whose first second is spent unpacking itself; unpacked at build
time, that second is saved at every boot.
"""

from __future__ import annotations

import struct
import subprocess
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.shell import run

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["extract"]

_SETUP_SECTORS = 0x1F1  # Documentation/arch/x86/boot.rst: setup_sects, payload_offset and _length
_PAYLOAD = 0x248
_ZSTD = b"\x28\xb5\x2f\xfd"
_ELF = b"\x7fELF"


def extract(bzimage: Path, target: Path) -> None:
    """Write the ELF kernel that is inside a bzImage.

    Raises:
        FleetfootError: The payload is not zstd-compressed ELF.
    """
    image = bzimage.read_bytes()
    sectors = image[_SETUP_SECTORS] or 4
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if not payload.startswith(_ZSTD):
        raise FleetfootError(
            f"{bzimage.name} is not compressed with zstd",
            "the kernel cannot be unpacked for direct boot",
            "teach fleetfoot/images/kernel.py the new compression",
        )
    # The last four bytes are the unpacked size, appended by the kernel's build.
    done = subprocess.run(["zstd", "-dcq"], input=payload[:-4], capture_output=True, check=False)
    if done.returncode or not done.stdout.startswith(_ELF):
        raise FleetfootError(
            f"{bzimage.name} holds no ELF kernel: {done.stderr.decode().strip()}",
            "it cannot be booted directly",
        )
    target.write_bytes(done.stdout)
    # A third of it is room between its parts.
    run(["fallocate", "--dig-holes", str(target)], consequence="the kernel would take more room")
