"""The node whose pulls bench pull measures: made ready before a start, and asked after it."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from typing import TYPE_CHECKING

from fleetfoot.bench import cluster, soci
from fleetfoot.errors import FleetfootError
from fleetfoot.machines import ssh
from fleetfoot.machines.network import tap_name
from fleetfoot.shell import run

if TYPE_CHECKING:
    from fleetfoot.bench.cluster import BenchCluster

__all__ = ["ARMS", "NODE", "Node", "Traffic", "run_on"]

NODE = "pull-1"
ARMS = ("eager", "tuned", "soci", "lazy", "traced")
_CPUS, _MEMORY_MIB, _DISK_MIB = 2, 3072, 20480
_RATE_BITS, _DELAY_MS = 10**9, 2
_PROBED_BYTES = 256 << 20
_SECONDS, _PAUSE = 900, 0.5
# What a pull goes by is left out: containerd's own defaults hold.
_AS_IT_COMES = """
version = 4
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{sandbox}'
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '/etc/containerd/certs.d'
[plugins.'io.containerd.transfer.v1.local']
config_path = '/etc/containerd/certs.d'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/usr/lib/cni']
conf_dir = '/etc/cni/net.d'
conf_template = '/etc/cni/fleetfoot.conflist.template'
"""
_KEEP = """
set -e
# What a boot still starts would come in between.
systemctl is-system-running --wait > /dev/null || :
# It looks again at each reload, and would start what was stopped.
systemctl stop node-rest.path node-rest.timer
mkdir -p /root/arms
cp /etc/containerd/config.toml /root/arms/lazy.toml
for unit in containerd containerd-sandbox; do
  cp /etc/systemd/system/$unit.service.d/50-fleetfoot-lazy.conf /root/arms/$unit.conf
done
sed -n "s/^ *sandbox = '\\(.*\\)'/\\1/p" /root/arms/lazy.toml
"""
# A store with nothing in it but the sandbox's image, and no lazy layer: as on a new machine.
_FRESH = """
set -e
systemctl stop kubelet
systemctl stop containerd-in-use containerd-sandbox containerd fleetfoot-lazy.socket fleetfoot-lazy
sed -n 's|^[^ ]* \\(/var/lib/fleetfoot-lazy/[^ ]*\\) .*|\\1|p' /proc/mounts |
  xargs --no-run-if-empty umount
PYTHONPATH=/usr/local/lib/fleetfoot/lazy python3 -c '
import glob, time
from fleetfoot.lazyfs.node import mapper, nbd
for name in mapper.found():
    while not mapper.remove(name):
        time.sleep(0.1)
for path in glob.glob("/sys/block/nbd*/backend"):
    nbd.disconnect(int(path.split("/")[3].removeprefix("nbd")))
'
systemctl stop fleetfoot-lazy-sectors
rm -rf /run/systemd/system/fleetfoot-lazy-sectors.service.d
{forget}
rm -rf /var/lib/containerd /var/lib/fleetfoot-lazy
if pgrep --exact containerd > /dev/null; then echo "containerd still runs" >&2; exit 1; fi
mkdir -m 0700 /var/lib/containerd
touch /var/lib/containerd/.empty
cp /root/arms/{config}.toml /etc/containerd/config.toml
sync
# What is started from here on is read from the disk again, as at a boot.
echo 3 > /proc/sys/vm/drop_caches
{snapshotter}
told() {
  systemctl list-jobs --no-pager >&2
  journalctl --unit=containerd --unit=containerd-sandbox --lines=15 --no-pager --output=cat >&2
  exit 1
}
systemctl start containerd || told
systemctl start containerd-sandbox || told
systemctl start kubelet
"""
_OURS = """
for unit in containerd containerd-sandbox; do
  cp /root/arms/$unit.conf /etc/systemd/system/$unit.service.d/50-fleetfoot-lazy.conf
done
systemctl daemon-reload
systemctl unset-environment CONTAINERD_DISABLE_IGZIP CONTAINERD_SNAPSHOTTER
systemctl start fleetfoot-lazy-sectors fleetfoot-lazy.socket fleetfoot-lazy
"""
# containerd would start our services, and unpack with igzip where it finds it.
_WITHOUT_OURS = """
rm -f /etc/systemd/system/*.service.d/50-fleetfoot-lazy.conf
systemctl daemon-reload
systemctl set-environment CONTAINERD_DISABLE_IGZIP=1 CONTAINERD_SNAPSHOTTER={snapshotter}
"""
_KEEP_TO_READS = """
unit=fleetfoot-lazy-sectors.service
mkdir -p /run/systemd/system/$unit.d
{ printf '[Service]\\nExecStart=\\n'
  systemctl cat $unit | sed -n '/^ExecStart=/,/[^\\]$/p' | sed 's/ rate=[0-9]*/ rate=0/'
} > /run/systemd/system/$unit.d/rate.conf
grep --quiet ' rate=0' /run/systemd/system/$unit.d/rate.conf
systemctl daemon-reload
systemctl restart $unit
"""
_DAEMONS = {"soci": ("soci",)}
_OUR_DAEMONS = ("fleetfoot-lazy", "fleetfoot-lazy-sectors")
_PSS = """
for unit in {units}; do
  for pid in $(systemctl show --property=MainPID --value $unit); do
    [ "$pid" = 0 ] || cat /proc/$pid/smaps_rollup
  done
done | awk '/^Pss:/ {{sum += $2}} END {{print sum + 0}}'
"""
# For each image that is mounted lazily.
_WAIT = """
import json, time
while True:
    try:
        images = json.load(open("/run/fleetfoot-lazy/status.json"))["images"]
    except (OSError, ValueError):
        images = []
    if images and all({condition} for each in images):
        break
    time.sleep(1)
"""
_RECEIVE = """
import socket, statistics, sys, time
place = (sys.argv[1], int(sys.argv[2]))
times = []
for _ in range(20):
    begun = time.monotonic()
    probe = socket.create_connection(place)
    times.append(time.monotonic() - begun)
    probe.close()
link = socket.create_connection(place)
link.sendall(b"go")
begun, count = time.monotonic(), 0
while piece := link.recv(1 << 20):
    count += len(piece)
print(statistics.median(times), count / (time.monotonic() - begun))
"""
_SEND = """
import socket, sys
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
while True:
    link, _ = server.accept()
    if link.recv(2) == b"go":
        break
piece = bytes(1 << 20)
for _ in range(int(sys.argv[2]) >> 20):
    link.sendall(piece)
"""
_WATCH = """
import sys, time
while True:
    for line in open("/proc/net/dev"):
        name, _, counts = line.partition(":")
        if name.strip() == sys.argv[1]:
            print(time.time(), counts.split()[8], flush=True)
    time.sleep(0.05)
"""
# All files of a container's image, twice after the cache was emptied; then single blocks of 4 KiB.
_READ = """
import os, random, statistics, sys, time
root = f"/proc/{sys.argv[1]}/root"
files = []
for folder, names, found in os.walk(root + "/usr"):
    files += [os.path.join(folder, name) for name in sorted(found)]
files = [path for path in files if os.path.isfile(path) and not os.path.islink(path)]
def empty():
    os.sync()  # what is not written yet would stay
    open("/proc/sys/vm/drop_caches", "w").write("3")
def all_of_it():
    begun, count = time.monotonic(), 0
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(1 << 20):
                count += len(piece)
    return count / (time.monotonic() - begun)
empty()
cold, warm = all_of_it(), all_of_it()
empty()
large = max(files, key=os.path.getsize)
chance, times = random.Random(1), []
with open(large, "rb", buffering=0) as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    for _ in range(200):
        offset = chance.randrange(os.path.getsize(large) >> 12) << 12
        begun = time.monotonic()
        os.pread(file.fileno(), 4096, offset)
        times.append(time.monotonic() - begun)
print(cold, warm, statistics.median(times))
"""


class Node:
    """A worker that boots the serverless image, on a link of 1 Gbit/s with 2 ms.

    Attributes:
        link: What was measured of the link before it was shaped (`before`) and after (`shaped`):
            `rate_bits` a second, `connect_ms` for a connection.
    """

    def __init__(self, bench: BenchCluster) -> None:
        self._bench = bench
        made = bench.start(NODE, "serverless", cpus=_CPUS, memory=_MEMORY_MIB, disk=_DISK_MIB)
        self.address = made.address
        bench.cluster.wait_ready(NODE)
        as_it_comes = _AS_IT_COMES.format(sandbox=self.run(_KEEP).strip())
        self._write("/root/arms/eager.toml", as_it_comes)
        self._write("/root/arms/soci.toml", as_it_comes + soci.CONFIG)
        self.link = {"before": self._probe()}
        self._shape()
        self.link["shaped"] = self._probe()

    def command(self, command: str) -> list[str]:
        """Return what runs a shell's commands on it."""
        return _command(self.address, command)

    def run(self, command: str) -> str:
        """Run a shell's commands on it."""
        return run_on(self.address, command)

    def python(self, script: str, *arguments: str) -> str:
        """Run a script of Python on it."""
        return self.run(shlex.join(["python3", "-c", script, *arguments]))

    def fresh(self, arm: str) -> None:
        """Forget all images, and go by an arm's configuration.

        Args:
            arm: One of `ARMS`.
        """
        ours, before = arm in {"tuned", "lazy", "traced"}, self._renewed()
        snapshotter = "soci" if arm == "soci" else "overlayfs"
        start = _OURS if ours else _WITHOUT_OURS.format(snapshotter=snapshotter)
        # Not by format(): the script has braces of its own.
        script = _FRESH.replace("{config}", "lazy" if ours else arm).replace("{forget}", soci.STOP)
        self.run(script.replace("{snapshotter}", start + (soci.START if arm == "soci" else "")))
        until = time.monotonic() + _SECONDS
        while self._renewed() == before:  # what the API knows is of the kubelet that was stopped
            if time.monotonic() > until:
                raise FleetfootError(f"{NODE} did not come back", f"arm {arm} cannot be measured")
            time.sleep(_PAUSE)
        self._bench.cluster.wait_ready(NODE)

    def _renewed(self) -> str:
        """Return when the kubelet last said that it is there."""
        lease = self._bench.cluster.get("lease", NODE, "--namespace=kube-node-lease")
        return str(lease["spec"]["renewTime"])

    def keep_to_reads(self) -> None:
        """Have nothing completed that nobody reads, until the node is made fresh."""
        self.run(_KEEP_TO_READS)

    def wait_complete(self) -> None:
        """Wait until all of what is mounted lazily is on the node."""
        self.python(_WAIT.format(condition='each["present"] >= each["bytes"] > 0'))

    def wait_turned(self) -> None:
        """Wait until all of it is read from its file."""
        self.python(_WAIT.format(condition='all(way["way"] == "file" for way in each["layers"])'))

    def clock(self) -> float:
        """Return by how many seconds its clock is ahead of the host's."""
        found = []
        for _ in range(5):
            before = time.time()
            said = float(self.run("date +%s.%N"))
            found.append((time.time() - before, said - (before + time.time()) / 2))
        return min(found)[1]  # of the shortest way there and back

    def busy(self) -> float:
        """Return the CPU time that all of it spent since its start, in seconds."""
        said = self.run("head --lines=1 /proc/stat; getconf CLK_TCK").split()
        spent = [int(word) for word in said[1:9]]
        return (sum(spent) - spent[3] - spent[4]) / int(said[-1])

    def memory(self, arm: str) -> float:
        """Return what an arm's daemons of lazy images take, in MB (Pss)."""
        units = " ".join(_DAEMONS.get(arm, _OUR_DAEMONS))
        return int(self.run(_PSS.format(units=units))) * 1024 / 1e6

    def reads(self, container: str) -> dict[str, float]:
        """Read all of a running container's image, and single blocks of it.

        Args:
            container: containerd's id of it.

        Returns:
            `cold_mb_s` and `warm_mb_s`: throughput; `cold_block_ms`: median of 4 KiB.
        """
        pid = self.run(f"ctr --namespace=k8s.io task ls | awk '$1 == \"{container}\" {{print $2}}'")
        if not pid.strip():
            raise FleetfootError(
                f"container {container} does not run", "its reads are not measured"
            )
        cold, warm, block = map(float, self.python(_READ, pid.strip()).split())
        return {"cold_mb_s": cold / 1e6, "warm_mb_s": warm / 1e6, "cold_block_ms": block * 1e3}

    def _write(self, path: str, content: str) -> None:
        self.run(f"printf %s {shlex.quote(content)} > {path}")

    def _shape(self) -> None:
        network = self._bench.fleet.network
        rate = [f"{_RATE_BITS // 10**6}mbit", "burst", "256kb", "latency", "50ms"]
        tap = tap_name(NODE)
        run(network.inside("tc", "qdisc", "replace", "dev", tap, "root", "tbf", "rate", *rate))
        own = '$(ip -json route show default | sed \'s/.*"dev":"\\([^"]*\\)".*/\\1/\')'
        self.run(f"modprobe sch_netem && tc qdisc replace dev {own} root netem delay {_DELAY_MS}ms")

    def _probe(self) -> dict[str, float]:
        network = self._bench.fleet.network
        argv = network.inside(sys.executable, "-c", _SEND, network.spec.gateway, str(_PROBED_BYTES))
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as sender:
            try:
                port = next(sender.stdout or iter(())).strip()
                said = self.python(_RECEIVE, network.spec.gateway, port).split()
            finally:
                sender.kill()
        return {"connect_ms": float(said[0]) * 1e3, "rate_bits": float(said[1]) * 8}


def run_on(address: str, command: str) -> str:
    """Run a shell's commands on a machine of the bench."""
    return run(_command(address, command), timeout=_SECONDS)


def _command(address: str, command: str) -> list[str]:
    return [*ssh.command(cluster.STACK), f"root@{address}", command]


class Traffic(threading.Thread):
    """Bytes that went over the link to the node, while a `with` block runs."""

    def __init__(self, bench: BenchCluster) -> None:
        super().__init__(daemon=True)
        argv = bench.fleet.network.inside(sys.executable, "-c", _WATCH, tap_name(NODE))
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self._times, self._bytes = list[float](), list[int]()

    def __enter__(self) -> Traffic:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()
            self.join()

    def run(self) -> None:
        """Take what is counted."""
        for line in self._process.stdout or ():
            when, count = line.split()
            self._bytes.append(int(count))
            self._times.append(float(when))

    def until(self, begin: float, end: float) -> int:
        """Return the bytes between two moments (seconds since the epoch)."""
        return self._at(end) - self._at(begin)

    def _at(self, moment: float) -> int:
        place = bisect_left(self._times, moment)
        return self._bytes[min(place, len(self._times) - 1)]
