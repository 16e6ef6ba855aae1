"""Images of the environment's registry are made lazy, and containers read them through faults."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from fleetfoot.lazyfs.table import BLOCK
from tests.e2e.stacks import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.stacks import Stack

pytestmark = pytest.mark.e2e

NODE, RECORDING = "worker-1", "worker-2"
PIECE = 1 << 20
PIECES = 24
#: Of the image's file: what `read` has not asked for is not on the node, for nothing completes it.
READ = (
    "import sys, hashlib; f = open('/piece', 'rb'); f.seek({start});"
    " print(hashlib.sha256(f.read({count})).hexdigest())"
)
#: The same, past what the kernel has of the file already.
READ_COLD = READ.replace(
    "f.seek", "import os; os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED); f.seek"
)
#: All of it again and again, until there is a file `/stop`.
READ_ON = """
import hashlib, os, sys
rounds = 0
with open("/piece", "rb") as f:
    while not os.path.exists("/stop"):
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        f.seek(0)
        assert hashlib.sha256(f.read()).hexdigest() == sys.argv[1], f"wrong in round {rounds}"
        rounds += 1
        print("round", rounds, flush=True)
"""
#: What a layer is read from, and which blocks its trace names.
TABLE = """
PYTHONPATH=/usr/local/lib/fleetfoot/lazy python3 -c '
import dataclasses, json
from pathlib import Path
from fleetfoot.lazyfs.node import mapper
table = [dataclasses.asdict(each) for each in mapper.table("LAYER")]
trace = json.loads(Path("/var/lib/fleetfoot-lazy/layers/LAYER/trace.json").read_text())["runs"]
print(json.dumps([table, trace]))'
"""
#: Of its layers alone: what others run is mounted lazily, too.
DAMAGE = """
cd /var/lib/fleetfoot-lazy/layers
for source in $(grep --files-with-matches '"reader"' */sources.json); do
  file=${source%/*}/data
  count=$(($(stat --format=%s $file) / (1 << 20) - 1))
  [ $count -lt 1 ] || dd if=/dev/zero of=$file bs=1M seek=1 count=$count conv=notrunc status=none
done
systemctl restart fleetfoot-lazy-sectors
echo 3 > /proc/sys/vm/drop_caches
"""
UNIT = "/etc/systemd/system/fleetfoot-lazy-sectors.service"
SAVED = "/root/fleetfoot-lazy-sectors.service"
RESTART = "systemctl daemon-reload && systemctl restart fleetfoot-lazy-sectors"
#: What udev knows of network block devices.
LOOKED_INTO = """
udevadm settle
for device in /sys/block/nbd*/pid; do
  name=$(basename "$(dirname "$device")")
  echo "$name" && udevadm info --query=property "/dev/$name"
done
"""
#: Layers with reads that wait; what waits for a connection counts above the network's device only.
IN_FLIGHT = "grep --files-with-matches '[1-9]' /sys/block/dm-*/inflight || :"


def sample_image(stack: Stack) -> str:
    """Return the reference of the sample service's image."""
    pod = stack.get("pods", "--namespace=sample")["items"][0]
    return str(pod["spec"]["containers"][0]["image"])


def test_an_image_of_the_registry_is_made_lazy(environment: Stack) -> None:
    named = sample_image(environment)
    environment.fleetfoot("lazy", "convert", named)
    assert "was attached already" in environment.fleetfoot("lazy", "convert", named).stdout
    shown = environment.fleetfoot("lazy", "inspect", named, "--json").stdout
    assert json.loads(shown)["subject"] == named.partition("@")[2]
    assert "is what its tables say" in environment.fleetfoot("lazy", "verify", named).stdout
    assert "is the ordinary one" in environment.fleetfoot("lazy", "diff", named).stdout


class Reader:
    """A pod whose image was mounted lazily.

    Attributes:
        stack: Its environment.
        image: Its reference.
        content: What its file `/piece` has.
        layers: Digests of its layers.
        pod: Name of the pod that reads.
    """

    def __init__(
        self, stack: Stack, image: str, content: bytes, layers: list[str], pod: str
    ) -> None:
        self.stack, self.image, self.content, self.layers = stack, image, content, layers
        self.pod = pod
        self._next = 0

    def start(self, name: str, node: str = NODE) -> None:
        """Run a pod of it."""
        container = {"name": "reader", "image": self.image, "command": ["sleep", "infinity"]}
        spec = {"nodeName": node, "containers": [container], "terminationGracePeriodSeconds": 0}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        file = self.stack.paths.root / f"{name}.yml"
        file.write_text(yaml.safe_dump(pod))
        self.stack.kubectl("apply", "-f", str(file))
        self.stack.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=180s")

    def starts_reading(self, pieces: int = 1) -> tuple[subprocess.Popen[str], str]:
        """Begin to read what was never read; return who does, and the digest that it must print."""
        start, self._next = self._next, self._next + pieces
        assert self._next <= PIECES
        script = READ.format(start=start * PIECE, count=pieces * PIECE)
        read = self.stack.start("fleetfoot", *self.python(script))
        return read, self.digest(start, pieces)

    def python(self, script: str, *arguments: str) -> tuple[str, ...]:
        """Return what runs a script of Python in its container."""
        return ("kubectl", "--", "exec", self.pod, "--", "python3", "-c", script, *arguments)

    def digest(self, start: int = 0, pieces: int = PIECES) -> str:
        """Return the digest of pieces of its file."""
        return hashlib.sha256(self.content[start * PIECE : (start + pieces) * PIECE]).hexdigest()

    def reads_cold(self, start: int, pieces: int) -> None:
        """Read pieces of its file that the kernel may have in memory already, from the device."""
        script = READ_COLD.format(start=start * PIECE, count=pieces * PIECE)
        said = self.stack.fleetfoot(*self.python(script), timeout=120).stdout
        assert self.digest(start, pieces) in said, said

    def goes_on_elsewhere(self) -> None:
        """Read next what was not read ahead, either."""
        self._next += 4

    def reads_again(self) -> None:
        """Read what was asked for last."""
        self._next -= 1
        self.reads()

    def settings(self, node: str = NODE, **changed: int) -> None:
        """Have a node's server run with other settings."""
        edits = "".join(f"s/{name}=[0-9]*/{name}={value}/;" for name, value in changed.items())
        self.stack.ssh(node, f"sed -i '{edits}' {UNIT} && {RESTART}")

    def everything(self) -> str:
        """Return what a container of it takes its file's digest to be."""
        script = READ.format(start=0, count=PIECES * PIECE)
        return str(self.stack.fleetfoot(*self.python(script), check=False).stdout)

    def image_shown(self) -> dict[str, Any]:
        """Return what is said of it by `fleetfoot lazy status`."""
        said = self.stack.fleetfoot("lazy", "status", "--node", NODE, "--json").stdout
        shown = json.loads(said).get(NODE, {}).get("images", [])
        images = {image["reference"]: image for image in shown}
        return dict(images.get(self.image, {"layers": []}))

    def ways(self) -> set[str]:
        """Return how its layers are read, by `fleetfoot lazy status`."""
        return {layer["way"] for layer in self.image_shown()["layers"]}

    def reads(self, pieces: int = 1) -> None:
        """Read what was never read."""
        read, wanted = self.starts_reading(pieces)
        said, _ = read.communicate(timeout=120)
        assert wanted in said, said

    def counts(self) -> dict[str, float]:
        """Return what the node's server counted since it was started."""
        said = self.stack.ssh(NODE, "cat /run/fleetfoot-lazy/stats.json", check=False)
        return dict(json.loads(said)["counts"]) if said.startswith("{") else {}


def run(stack: Stack, *argv: str) -> str:
    """Run skopeo or umoci; skopeo with the credential for the environment's registry."""
    folder = stack.paths.root / "registry"
    options = [f"--authfile={folder / 'auth.json'}"] if argv[:2] == ("skopeo", "copy") else []
    options += [f"--{side}-cert-dir={folder / 'certs'}" for side in ("src", "dest") if options]
    done = subprocess.run([*argv, *options], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def made_lazy(environment: Stack, folder: Path, name: str) -> Reader:
    """Make a lazy image with a file of its own; no pod of it runs yet."""
    content = os.urandom(PIECES * PIECE)
    host, _, sample = sample_image(environment).partition("/")
    outside = f"docker://{environment.machine('control-1')['address']}:5000"
    layout, tree = folder / "layout", folder / "tree"
    run(environment, "skopeo", "copy", f"{outside}/{sample}", f"oci:{layout}:sample")
    run(environment, "umoci", "raw", "unpack", "--image", f"{layout}:sample", str(tree))
    (tree / "piece").write_bytes(content)
    # A layer of its own: the node has those of the sample unpacked.
    run(environment, "umoci", "new", "--image", f"{layout}:{name}")
    run(environment, "umoci", "insert", "--image", f"{layout}:{name}", str(tree), "/")
    run(environment, "skopeo", "copy", f"oci:{layout}:{name}", f"{outside}/{name}:1")
    layers = json.loads(run(environment, "skopeo", "inspect", f"oci:{layout}:{name}"))["Layers"]
    image = f"{host}/{name}:1"
    environment.fleetfoot("lazy", "convert", image)
    return Reader(environment, image, content, layers, name)


@pytest.fixture(scope="module")
def reader(environment: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A pod of a lazy image, of which the node fetches only what is read."""
    made = made_lazy(environment, tmp_path_factory.mktemp("image"), "reader")
    environment.ssh(NODE, f"cp {UNIT} {SAVED}")
    made.settings(rate=0)
    try:
        made.start("reader")
        yield made
    finally:
        environment.kubectl("delete", "pod", "reader", "another", "--ignore-not-found", "--now")
        environment.ssh(NODE, f"mv {SAVED} {UNIT}")
        made.settings()


def test_no_layer_of_a_lazy_image_is_unpacked(reader: Reader) -> None:
    ways = [layer["way"] for layer in reader.image_shown()["layers"]]
    assert ways == ["nbd"] * len(reader.layers)
    blobs = "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256"
    kept = reader.stack.ssh(NODE, f"ls {blobs}").split()
    assert kept
    assert not {layer.partition(":")[2] for layer in reader.layers} & set(kept)
    assert 0 < reader.counts()["bytes_fetched"] < PIECES * PIECE


def killed(stack: Stack, unit: str) -> None:
    """End a unit's process at once."""
    stack.ssh(NODE, f"systemctl kill --signal=KILL {unit}")


@pytest.mark.parametrize("unit", ["fleetfoot-lazy-sectors", "fleetfoot-lazy"])
def test_a_read_waits_for_a_service_that_was_killed(reader: Reader, unit: str) -> None:
    read, wanted = reader.starts_reading(2)
    killed(reader.stack, unit)
    said, _ = read.communicate(timeout=120)
    assert wanted in said, said
    reader.reads()


def test_pods_start_while_the_snapshotter_is_started_anew(reader: Reader) -> None:
    reader.stack.ssh(NODE, "systemctl kill --signal=KILL fleetfoot-lazy")
    reader.start("another")
    reader.stack.kubectl("delete", "pod", "another", "--now")


@contextlib.contextmanager
def registry_away(stack: Stack) -> Iterator[None]:
    """Stop the registry for a while."""
    stack.ssh("control-1", "systemctl stop docker-registry")
    try:
        yield
    finally:
        stack.ssh("control-1", "systemctl start docker-registry")


def test_a_read_waits_for_a_registry_that_is_away(reader: Reader) -> None:
    reader.reads()
    with registry_away(reader.stack):
        errors = reader.counts().get("errors_unreachable", 0)
        read, wanted = reader.starts_reading()
        eventually(lambda: reader.counts().get("errors_unreachable", 0) > errors)
        # What was read goes on being read.
        again = READ.format(start=0, count=PIECE)
        said = reader.stack.kubectl("exec", "reader", "--", "python3", "-c", again)
        assert hashlib.sha256(reader.content[:PIECE]).hexdigest() in said
        assert read.poll() is None
    said, _ = read.communicate(timeout=120)
    assert wanted in said, said


def test_a_read_fails_after_the_deadline_and_the_next_one_does_not(reader: Reader) -> None:
    reader.goes_on_elsewhere()
    reader.settings(deadline=5)
    try:
        with registry_away(reader.stack):
            read, _ = reader.starts_reading()
            said, _ = read.communicate(timeout=120)
            assert "Input/output error" in said, said
            assert reader.counts()["reads_failed"] > 0
        reader.reads_again()
    finally:
        reader.settings(deadline=300)


def test_what_was_damaged_on_the_node_is_fetched_again(reader: Reader) -> None:
    digest = hashlib.sha256(reader.content).hexdigest()
    assert digest in reader.everything()
    reader.stack.ssh(NODE, DAMAGE)
    assert digest in reader.everything()
    assert reader.counts()["corrupted_cached"] > 0


def test_nobody_else_looks_into_a_layer(reader: Reader) -> None:
    found = reader.stack.ssh(NODE, LOOKED_INTO).split()
    assert any(word.startswith("nbd") for word in found)
    assert "ID_FS_TYPE=erofs" not in found, "udev read all over it"


def test_status_and_trace_say_what_was_read(reader: Reader) -> None:
    stack = reader.stack
    shown = reader.image_shown()
    assert 0 < shown["present"] <= shown["bytes"]
    assert reader.ways() == {"nbd"}
    assert NODE in stack.fleetfoot("lazy", "status").stdout
    touched = stack.fleetfoot("lazy", "touched", reader.image, "--node", NODE, "--json").stdout
    (layer,) = json.loads(touched)
    # All of the file was read, and some of the programs beside it.
    assert PIECES * PIECE <= len(layer["touched"]) * BLOCK < layer["blocks"] * BLOCK
    assert "recorded" in stack.fleetfoot("lazy", "trace", reader.image, "--node", NODE).stdout
    assert "attached already" in stack.fleetfoot("lazy", "convert", reader.image).stdout


def read_from_file(reader: Reader, layer: str) -> tuple[set[int], set[int], str]:
    """Return blocks that the node reads from a layer's file, those of its trace, and the device."""
    table, trace = json.loads(reader.stack.ssh(NODE, TABLE.replace("LAYER", layer)))
    here, per_block = [each for each in table if each["device"].startswith("7:")], BLOCK // 512
    assert len({each["device"] for each in here}) <= 1, table
    blocks: set[int] = set()
    for each in here:
        behind = each["first"] + each["count"]
        blocks |= set(range(each["first"] // per_block, -(-behind // per_block)))
    named = {block for first, behind in trace for block in range(first, behind)}
    return blocks, named, here[0]["device"].replace("7:", "loop") if here else ""


def test_what_a_trace_brought_is_read_from_the_file_beside_the_rest(
    reader: Reader, tmp_path: Path
) -> None:
    stack = reader.stack
    traced = made_lazy(stack, tmp_path, "traced")
    stack.ssh(RECORDING, f"cp {UNIT} {SAVED}")
    try:
        traced.settings(RECORDING, rate=0)  # or it were complete before it is read
        traced.start("traced", RECORDING)
        traced.reads(4)
        stack.fleetfoot("lazy", "trace", traced.image, "--node", RECORDING)
        stack.kubectl("delete", "pod", "traced", "--now")
        traced.start("traced")
        eventually(lambda: traced.ways() == {"both"}, timeout=180, pause=2)
        (layer,) = (each["layer"] for each in traced.image_shown()["layers"])

        def is_all_there() -> bool:
            blocks, named, _ = read_from_file(traced, layer)
            return blocks == named

        eventually(is_all_there, pause=2)
        _, named, device = read_from_file(traced, layer)
        assert len(named) * BLOCK >= 4 * PIECE
        # Python itself is in memory from now on: who has no server starts it all the same.
        traced.reads_cold(0, 4)

        def sectors_read() -> int:
            return int(stack.ssh(NODE, f"cat /sys/block/{device}/stat").split()[2])

        before = sectors_read()
        stack.ssh(NODE, "systemctl stop fleetfoot-lazy-sectors")
        try:
            traced.reads_cold(0, 4)
            assert (sectors_read() - before) * 512 >= 4 * PIECE
            # What no trace named waits for the server, as ever.
            traced.goes_on_elsewhere()
            read, wanted = traced.starts_reading()
            eventually(lambda: stack.ssh(NODE, IN_FLIGHT).strip())
            assert read.poll() is None
        finally:
            stack.ssh(NODE, "systemctl start fleetfoot-lazy-sectors")
        said, _ = read.communicate(timeout=120)
        assert wanted in said, said
        assert traced.ways() == {"both"}
        for told in ("forgotten", "there is none"):
            assert told in stack.fleetfoot("lazy", "trace", traced.image, "--forget").stdout
    finally:
        stack.kubectl("delete", "pod", "traced", "--ignore-not-found", "--now")
        stack.ssh(RECORDING, f"mv {SAVED} {UNIT} && {RESTART}")


def test_a_mount_turns_to_its_file_beneath_who_reads_it(reader: Reader) -> None:
    stack, layers = reader.stack, {each["layer"] for each in reader.image_shown()["layers"]}
    attached = "cat /sys/block/nbd*/backend 2> /dev/null || :"
    assert all(layer in stack.ssh(NODE, attached) for layer in layers)
    read = stack.start("fleetfoot", *reader.python(READ_ON, reader.digest()))
    said: list[str] = []
    taken = threading.Thread(target=lambda: said.extend(read.stdout or ()), daemon=True)
    taken.start()
    try:
        eventually(lambda: said)
        reader.settings(rate=1 << 30)
        eventually(lambda: reader.ways() == {"file"}, timeout=300, pause=2)
        turned = len(said)
        eventually(lambda: len(said) > turned + 2)
    finally:
        stack.fleetfoot(*reader.python("open('/stop', 'w')"), check=False)
        try:
            read.wait(timeout=120)
        finally:
            read.kill()
            taken.join()
            assert read.stdout
            read.stdout.close()
            reader.settings(rate=0)
    assert read.returncode == 0, said
    eventually(lambda: not any(layer in stack.ssh(NODE, attached) for layer in layers))
    # No daemon is in the path any more, nor needed by a snapshotter that is started anew.
    stack.ssh(NODE, "systemctl stop fleetfoot-lazy-sectors")
    try:
        reader.reads_cold(0, PIECES)
    finally:
        stack.ssh(NODE, "systemctl start fleetfoot-lazy-sectors")
    killed(stack, "fleetfoot-lazy")
    stack.ssh(NODE, "rm --force /run/fleetfoot-lazy/status.json")  # of the one that was killed
    reader.reads_cold(0, PIECES)
    eventually(lambda: reader.ways() == {"file"}, pause=2)
    shown = reader.image_shown()
    assert 0 < shown["bytes"] == shown["present"]


@pytest.mark.long  # with the boot of an emulated machine
def test_mounts_come_back_with_the_machine_while_the_registry_is_away(reader: Reader) -> None:
    stack, booted = reader.stack, reader.stack.boot(NODE)

    def complete() -> bool:
        shown = reader.image_shown()
        return bool(0 < shown["bytes"] == shown["present"])

    reader.settings(rate=1 << 30)
    eventually(complete, timeout=300, pause=5)
    with registry_away(stack):
        stack.ssh(NODE, "systemd-run --no-block systemctl reboot", check=False)
        eventually(lambda: stack.boot(NODE) not in ("", booted), timeout=600)
        digest = hashlib.sha256(reader.content).hexdigest()
        eventually(lambda: digest in reader.everything(), timeout=300)
