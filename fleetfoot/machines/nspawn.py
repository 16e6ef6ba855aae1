"""Machines as systemd-nspawn containers: control machines and role tests, at native speed.

The image tree stays read-only; a machine is an overlay on it. Folders named as volumes are bound
from outside, so a replaced machine finds its data again.
"""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot.machines import process, ssh
from fleetfoot.machines.cgroups import Cgroup
from fleetfoot.machines.network import BRIDGE
from fleetfoot.paths import private_dir
from fleetfoot.shell import run, succeeds

if TYPE_CHECKING:
    from fleetfoot.machines.process import Daemon
    from fleetfoot.machines.spec import MachineSpec, Placement

__all__ = ["Nspawn"]

_BUDGETS = "/run/fleetfoot/budgets"
_SHUTDOWN_SECONDS = 30
_SSH_SECONDS = 60
# systemd's request for an orderly power-off: SIGRTMIN+4 (systemd(1), SIGNALS).
_POWER_OFF = signal.SIGRTMIN + 4


class Nspawn:
    """The backend of `backend: nspawn`."""

    def start(self, spec: MachineSpec, place: Placement) -> None:
        """Mount the machine's tree and boot it, unless it runs already."""
        if self.running(spec.name, place) is not None:
            return
        root = self._mount(spec, place)
        cgroup = Cgroup(place.network.spec.stack, spec.name)
        cgroup.create(spec.cpus, spec.memory)
        budgets = [
            (folder, f"{_BUDGETS}/{budget.name}/{controller}")
            for budget in spec.budgets
            for controller, folder in cgroup.budget(**asdict(budget)).items()
        ]
        argv = place.network.inside(
            "systemd-nspawn",
            "--quiet",
            "--boot",
            "--register=no",
            "--keep-unit",
            "--console=pipe",
            "--link-journal=no",
            "--resolv-conf=off",
            "--timezone=off",
            f"--directory={root}",
            f"--machine={spec.name}",
            f"--network-bridge={BRIDGE}",
            *(f"--load-credential={name}:{path}" for name, path in place.credentials.items()),
            *(
                f"--bind={source}:{target}"
                for source, target in (*self._volumes(spec, place), *budgets)
            ),
        )
        # The kernel takes its time over the links of a container that just ended.
        succeeds(place.network.inside("ip", "link", "delete", f"vb-{spec.name}"))
        log = place.folder / "console.log"
        started = process.start(
            place.network.paths.record(spec.name),
            argv,
            log=log,
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            cgroups=cgroup.procs,
        )
        ssh.wait(spec.name, place, started, log=log, console=log, timeout=_SSH_SECONDS)

    def running(self, name: str, place: Placement) -> Daemon | None:
        """Return the nspawn process, if it runs."""
        return process.find(place.network.paths.record(name))

    def stop(self, name: str, place: Placement) -> None:
        """Power it off in order; after 30 s by force."""
        daemon = self.running(name, place)
        if daemon is None:
            return
        for leader in _children(daemon.pid):
            os.kill(leader, _POWER_OFF)
        if not daemon.wait(_SHUTDOWN_SECONDS):
            daemon.end(signal.SIGTERM)
        daemon.record.unlink(missing_ok=True)

    def delete(self, name: str, place: Placement) -> None:
        """End it at once (`stop` is the orderly end); remove its overlay, mount and cgroup."""
        daemon = self.running(name, place)
        if daemon is not None:
            daemon.end(signal.SIGKILL)
        Cgroup(place.network.spec.stack, name).delete()
        root = place.folder / "root"
        while root.is_mount():
            run(["umount", str(root)])
        shutil.rmtree(place.folder, ignore_errors=True)

    def _mount(self, spec: MachineSpec, place: Placement) -> Path:
        root = private_dir(place.folder / "root")
        if root.is_mount():
            return root
        upper, work = private_dir(place.folder / "upper"), private_dir(place.folder / "work")
        upper.chmod(0o755)  # becomes the machine's /
        options = f"lowerdir={spec.image.path},upperdir={upper},workdir={work}"
        run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)])
        return root

    def _volumes(self, spec: MachineSpec, place: Placement) -> list[tuple[Path, str]]:
        pairs = []
        for target in spec.volumes:
            folder = place.network.paths.volumes / spec.name / target.strip("/").replace("/", "-")
            if not folder.exists():
                # Owner and mode are those the image gives the folder; roles may change them.
                private_dir(folder.parent)
                inside = Path(spec.image.path) / target.lstrip("/")
                if inside.is_dir():
                    succeeds(["cp", "-a", "--", str(inside), str(folder)])
                else:
                    folder.mkdir(mode=0o755)
            pairs.append((folder, target))
        return pairs


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]
