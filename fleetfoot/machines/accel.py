"""Whether KVM serves: decided by booting a kernel under it, not by looking for the device.

A host may have /dev/kvm under which stock kernels die (nested or filtered virtualisation). The
probe boots the image's own kernel without any disk: a guest that gets as far as looking for its
root has shown that CPU, interrupts and timers work.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from fleetfoot.paths import private_dir, write_private

__all__ = ["BESIDE_DISK", "accelerator"]

#: Name of the kernel that stands beside a disk with a boot loader, for the probe alone.
BESIDE_DISK = "vmlinuz"

_PROBE_SECONDS = 20
_REACHED_ROOT = "Unable to mount root fs"


def accelerator(kernel: Path) -> str:
    """Return `kvm` when a probe guest boots `kernel` under it, else `tcg`.

    The answer is kept until the next boot of the host, per kernel.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with kernel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    known = private_dir(Path("/run/fleetfoot")) / f"accel-{digest}"
    if not known.exists():
        write_private(known, "kvm" if _boots_under_kvm(kernel) else "tcg")
    return known.read_text()


def _boots_under_kvm(kernel: Path) -> bool:
    argv = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", "256", "-no-reboot"]
    argv += ["-nodefaults", "-display", "none", "-serial", "stdio", "-kernel", str(kernel)]
    argv += ["-append", "console=ttyS0 panic=-1 noinitrd root=/dev/none"]
    try:
        done = subprocess.run(
            argv, capture_output=True, timeout=_PROBE_SECONDS, stdin=subprocess.DEVNULL, check=False
        )
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return False
    return _REACHED_ROOT in done.stdout.decode(errors="replace")
