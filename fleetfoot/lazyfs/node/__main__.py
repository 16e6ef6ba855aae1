"""The snapshotter: `python3 -m fleetfoot.lazyfs.node --root FOLDER --address SOCKET ...`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from grpclib.server import Server

from fleetfoot.lazyfs.node import mapper, registries
from fleetfoot.lazyfs.node.devices import Devices
from fleetfoot.lazyfs.node.images import Images
from fleetfoot.lazyfs.node.report import Reporter
from fleetfoot.lazyfs.node.service import Service
from fleetfoot.lazyfs.node.snapshots import Snapshots

_CALLS_AT_ONCE = 32
_BEGUN = 19  # in what follows the name in /proc/PID/stat: starttime, proc(5)
_SEEN = "io.fleetfoot.lazy.seen=yes"
_FIRST_PASSED = 3  # the number of what systemd opened, sd_listen_fds(3)
_LOOK = 5.0  # seconds until the kernel is asked again for network block devices
_WAITED = 10.0  # seconds; containerd waits 20 for an answer, and then goes on without
_CTR = ("/usr/local/bin/ctr", "--namespace=k8s.io", "images")
_GRACE = 5.0  # seconds for calls that are under way when it ends


def main() -> NoReturn:
    """Serve until told to end."""
    options = _options()
    os.umask(0o077)
    options.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    options.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    devices = Devices(options.root, options.server, dead_timeout=options.dead_timeout, log=_log)
    snapshots = Snapshots(options.root, volatile=options.volatile)
    images = Images(options.root, options.certs, devices.attach, _log)
    calls = ThreadPoolExecutor(_CALLS_AT_ONCE)
    service = Service(options.root, snapshots, images, devices, _log, calls=calls)
    reporter = Reporter(options.root, options.run, snapshots, devices, _log)
    signal.signal(mapper.INTERRUPT, lambda *_: None)  # it has to come, no more
    registries.warm(options.certs)
    # What a call needs is mounted with it; the rest must not keep other images waiting.
    for work in (lambda: _watched(devices), service.restore, reporter.work):
        threading.Thread(target=work, daemon=True).start()
    asyncio.run(_serve(service, _listening(options.address)))
    # A call that still waits for its registry is made again: containerd's socket stays.
    calls.shutdown(wait=False, cancel_futures=True)
    os._exit(0)


async def _serve(service: Service, listening: socket.socket) -> None:
    """Answer until told to end, and what is under way then for a while."""
    server = Server([service])
    await server.start(sock=listening)
    _say_ready()
    if (age := _age()) > _WAITED:
        _log(f"the start took {age:.0f} s: containerd is told of its images again")
        threading.Thread(target=_tell_images, daemon=True).start()
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await ended.wait()
    server.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(server.wait_closed(), _GRACE)


def _listening(address: Path) -> socket.socket:
    """Return systemd's socket, where calls wait while this is not running; else one of our own."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return socket.socket(fileno=_FIRST_PASSED)
    address.unlink(missing_ok=True)
    own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    own.bind(str(address))  # root alone may open it
    own.listen()
    return own


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fleetfoot-lazy", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("/var/lib/fleetfoot-lazy"))
    parser.add_argument("--run", type=Path, default=Path("/run/fleetfoot-lazy"))
    parser.add_argument(
        "--address", type=Path, default=Path("/run/fleetfoot-lazy/snapshotter.sock")
    )
    parser.add_argument("--server", type=Path, default=Path("/run/fleetfoot-lazy/nbd.sock"))
    parser.add_argument("--certs", type=Path, default=Path("/etc/containerd/certs.d"))
    parser.add_argument("--dead-timeout", type=int, default=600)
    parser.add_argument("--volatile", action="store_true")
    return parser.parse_args()


def _watched(devices: Devices) -> None:
    """Mend devices from now on; a kernel may get the module later than it is wanted."""
    while True:
        try:
            devices.watch()
        except OSError:
            time.sleep(_LOOK)
        else:
            return


def _say_ready() -> None:
    """Tell systemd (sd_notify(3)) that containerd can call."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect(address.replace("@", "\0", 1))
            manager.send(b"READY=1")


def _age() -> float:
    """Return for how many seconds this process has run."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begun = int(fields[_BEGUN]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - begun


def _tell_images() -> None:
    """Have containerd's CRI look at its images again.

    It does so when it starts, and images whose snapshots it could not ask for are none to it, the
    sandbox's included, until something happens to them.
    """
    try:
        listed = subprocess.run([*_CTR, "ls", "-q"], check=True, capture_output=True, text=True)
        for name in listed.stdout.split():
            subprocess.run([*_CTR, "label", name, _SEEN], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:  # it is not there yet, and will ask
        _log(f"containerd was not told of its images: {error}")


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
