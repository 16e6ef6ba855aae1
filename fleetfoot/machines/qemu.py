"""Machines as QEMU guests: workers with a kernel of their own.

The image is read-only and shared; each guest writes to a qcow2 overlay of its own. Identity goes in
by fw_cfg files (systemd credentials) or, for images with cloud-init, by a NoCloud disk.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from qemu.qmp import QMPError

from fleetfoot.errors import FleetfootError
from fleetfoot.machines import process, qmp, seed, ssh
from fleetfoot.machines.accel import BESIDE_DISK, accelerator
from fleetfoot.shell import run

if TYPE_CHECKING:
    from fleetfoot.machines.process import Daemon
    from fleetfoot.machines.spec import MachineSpec, Placement

__all__ = ["Qemu"]

# Nothing that neither image needs: each device left out is one less to probe.
_MACHINE = "q35,usb=off,smbus=off,sata=off,vmport=off,hpet=off,i8042=off"
# Emulated `rep movsb` moves byte by byte, and kernels use it where a processor says it is fast.
# Without it they copy twice as fast (100 MB to a tmpfs and back: 0.5 s instead of 1.2 s).
_EMULATED = ["-accel", "tcg,thread=multi", "-cpu", "max,erms=off,fsrm=off"]
# A guest that breaks out of its hypervisor starts no programs and changes no limits.
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_SEED = "seed.iso"
_SHUTDOWN_SECONDS = 30
_SSH_SECONDS = 900
# Processors emulated by threads race now and then, and QEMU aborts (its issue 1921).
_BOOTS = 3


class Qemu:
    """The backend of `backend: qemu`."""

    def start(self, spec: MachineSpec, place: Placement) -> None:
        """Make the overlay and boot the guest, unless it runs already.

        A guest whose QEMU ends by itself while it boots is booted again, up to three times in all.

        Raises:
            FleetfootError: QEMU refused its command line, ended every time, or the guest was mute.
        """
        log, console = place.folder / "qemu.log", place.folder / "console.log"
        for left in reversed(range(_BOOTS)):
            printed = _size(console)
            daemon = self.running(spec.name, place) or self._boot(spec, place, log)
            try:
                ssh.wait(spec.name, place, daemon, log=log, console=console, timeout=_SSH_SECONDS)
            except FleetfootError:
                if not left or daemon.alive or _size(console) == printed:
                    raise
            else:
                return

    def _boot(self, spec: MachineSpec, place: Placement, log: Path) -> Daemon:
        self._disk(spec, place)
        self._seed(spec, place)
        argv = place.network.inside(*self.command(spec, place))
        return process.start(place.network.paths.record(spec.name), argv, log=log)

    def running(self, name: str, place: Placement) -> Daemon | None:
        """Return the QEMU process, if it runs."""
        return process.find(place.network.paths.record(name))

    def stop(self, name: str, place: Placement) -> None:
        """Press the power button; after 30 s pull the plug."""
        daemon = self.running(name, place)
        if daemon is None:
            return
        with contextlib.suppress(OSError, TimeoutError, QMPError):
            qmp.execute(self._socket(name, place), "system_powerdown")
            daemon.wait(_SHUTDOWN_SECONDS)
        daemon.end(timeout=5)

    def delete(self, name: str, place: Placement) -> None:
        """Pull the plug (the node was drained before) and remove disk and tap."""
        daemon = self.running(name, place)
        if daemon is not None:
            daemon.end(timeout=5)
        place.network.drop_tap(name, place.address)
        self._socket(name, place).unlink(missing_ok=True)
        shutil.rmtree(place.folder, ignore_errors=True)

    def command(self, spec: MachineSpec, place: Placement) -> list[str]:
        """Return the QEMU command line of a guest."""
        image = spec.image
        kernel = Path(image.kernel) if image.kernel else None
        tcg = accelerator(kernel or Path(image.path).with_name(BESIDE_DISK)) == "tcg"
        argv = ["qemu-system-x86_64", "-name", spec.name, "-nodefaults", "-no-user-config"]
        argv += ["-machine", _MACHINE, "-sandbox", _SANDBOX]
        argv += _EMULATED if tcg else ["-accel", "kvm", "-cpu", "host"]
        argv += ["-smp", str(math.ceil(spec.cpus)), "-m", str(spec.memory)]
        argv += ["-display", "none", "-device", "virtio-rng-pci"]
        argv += ["-chardev", f"file,id=console,path={place.folder / 'console.log'},append=on"]
        argv += ["-serial", "chardev:console"]
        argv += ["-qmp", f"unix:{self._socket(spec.name, place)},server=on,wait=off"]
        own = mac(place.address)
        tap = place.network.tap(spec.name, place.address, own)
        argv += ["-netdev", f"tap,id=net,ifname={tap},script=no,downscript=no"]
        argv += ["-device", f"virtio-net-pci,netdev=net,mac={own},romfile="]
        argv += ["-drive", f"if=none,id=root,file={place.folder / 'disk.qcow2'},discard=unmap"]
        argv += ["-device", "virtio-blk-pci,drive=root,bootindex=1"]
        if kernel:
            argv += ["-kernel", str(kernel), "-append", image.cmdline]
            argv += ["-initrd", image.initrd] if image.initrd else []
        if image.seed == "credentials":
            for name, path in place.credentials.items():
                argv += ["-fw_cfg", f"name=opt/io.systemd.credentials/{name},file={path}"]
        else:
            source = place.folder / _SEED
            argv += ["-drive", f"if=none,id=seed,file={source},format=raw,readonly=on"]
            argv += ["-device", "virtio-blk-pci,drive=seed"]
        return argv

    def _disk(self, spec: MachineSpec, place: Placement) -> None:
        overlay = place.folder / "disk.qcow2"
        if overlay.exists():
            return
        new = overlay.with_suffix(".new")
        backing = ["-b", spec.image.path, "-F", "raw"]
        run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(new), f"{spec.disk}M"])
        new.replace(overlay)

    def _seed(self, spec: MachineSpec, place: Placement) -> None:
        if spec.image.seed == "credentials":
            return
        seed.write_seed(
            place.folder / _SEED,
            name=spec.name,
            host_key=(place.folder / "ssh_host_ed25519_key.pub").read_text().strip(),
            network=place.network.spec,
            address=place.address,
            credentials={name: path.read_text() for name, path in place.credentials.items()},
        )

    def _socket(self, name: str, place: Placement) -> Path:
        return place.network.paths.run / f"{name}.qmp"


def _size(file: Path) -> int:
    """Return a file's size in bytes, 0 while there is none."""
    return file.stat().st_size if file.exists() else 0


def mac(address: str) -> str:
    """Return a locally administered MAC that stands for an IPv4 address."""
    octets = [int(part) for part in address.split(".")]
    return "52:54:" + ":".join(f"{octet:02x}" for octet in octets)
