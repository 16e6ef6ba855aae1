"""Stacks of the tests' own, and what is asked of them."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fleetfoot.cluster import is_ready
from fleetfoot.machines import ssh
from fleetfoot.machines.fleet import Fleet
from fleetfoot.paths import StackPaths
from fleetfoot.stack.inventory import API_PORTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import Message

PROJECT = Path(__file__).parents[2]
STATE = PROJECT / ".fleetfoot"
BIN = Path(sys.executable).parent
#: Seconds within which a run is killed: from the first resource to a playbook half done.
KILLED_WITHIN = (2.0, 45.0)


class Stack:
    """A stack of the test's own, with the shape of one that is there and other addresses.

    It is taken down at the end of a `with` block, unless that was done within.

    Args:
        name: Its name; the configuration stands in Pulumi.<name>.yaml while the test runs.
        net: Second octet of its addresses.
        like: The stack whose shape it has.
        project: The checkout that has it; another one has a virtual environment of its own.
    """

    def __init__(
        self, name: str, net: int, like: str = "local", *, project: Path = PROJECT
    ) -> None:
        self.name = name
        self.paths = StackPaths(name, project)
        self.file = project / f"Pulumi.{name}.yaml"
        config = yaml.safe_load((project / f"Pulumi.{like}.yaml").read_text())["config"]
        config["fleetfoot:network"] = {
            "cidr": f"10.{net}.0.0/24",
            "uplink": f"10.{net}.255.0/30",
            "pods": f"10.{net + 1}.0.0/16",
            "services": f"10.{net + 2}.0.0/16",
        }
        self.config: dict[str, Any] = config
        self.write()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file.exists():
            self.down()

    def control_only(self) -> None:
        """Leave the workers out."""
        pools = self.config["fleetfoot:pools"]
        self.config["fleetfoot:pools"] = [p for p in pools if p["groups"] != ["workers"]]
        self.config["fleetfoot:sample"] = {"enabled": False}
        self.write()

    def write(self) -> None:
        """Write the configuration."""
        self.file.write_text(yaml.safe_dump({"config": self.config}))

    def pool(self, name: str) -> dict[str, Any]:
        """Return a pool's configuration; change it, then `write`."""
        pools: list[dict[str, Any]] = self.config["fleetfoot:pools"]
        return next(pool for pool in pools if pool["name"] == name)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "STACK": self.name, "FLEETFOOT_ENGINE": "embedded", "COLUMNS": "200"}

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Begin a program of the virtual environment on the stack; output is one text."""
        project = self.paths.project
        programs = BIN if project == PROJECT else project / ".venv" / "bin"
        return subprocess.Popen(
            [str(programs / argv[0]), *argv[1:]],
            cwd=project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self, *argv: str, check: bool = True, timeout: float = 1800
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the virtual environment on the stack to its end."""
        with self.start(*argv) as run:
            try:
                said, _ = run.communicate(timeout=timeout)
            except BaseException:
                run.kill()
                raise
        assert not check or run.returncode == 0, f"{' '.join(argv)}:\n{said}"
        return subprocess.CompletedProcess(argv, run.returncode, said)

    def fleetfoot(self, *argv: str, check: bool = True, timeout: float = 1800) -> Any:
        """Run the `fleetfoot` command."""
        return self.run("fleetfoot", *argv, check=check, timeout=timeout)

    def start_up(self) -> subprocess.Popen[str]:
        """Begin an `up`."""
        return self.start("fleetfoot", "up")

    def killed_up(self, seconds: float) -> bool:
        """Begin an `up` and kill it, -9, after so many seconds; False if it was done before."""
        run = self.start_up()
        try:
            said, _ = run.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.kill(run.pid, signal.SIGKILL)
            run.communicate()
            return True
        assert run.returncode == 0, said
        return False

    def kill_runs(self, count: int) -> None:
        """Kill so many runs at random moments; after one done before, begin from nothing."""
        chance = random.SystemRandom()
        for number in range(count):
            while not self.killed_up(moment := chance.uniform(*KILLED_WITHIN)):
                self.fleetfoot("down", "--yes")
            print(f"kill {number + 1} of {count} after {moment:.1f} s")

    def status(self) -> dict[str, Any]:
        """Return what `status --json` says."""
        found: dict[str, Any] = json.loads(self.fleetfoot("status", "--json").stdout)
        return found

    def kubectl(self, *argv: str) -> str:
        """Run kubectl on the stack's cluster."""
        return str(self.fleetfoot("kubectl", "--", *argv).stdout)

    def get(self, *what: str) -> Any:
        """Return an object of the cluster."""
        return json.loads(self.kubectl("get", *what, "-o", "json"))

    def play(self, playbook: str, *options: str) -> str:
        """Run a playbook on the stack's machines; return what it said."""
        argv = ["-i", "inventory/fleetfoot.yml", f"playbooks/{playbook}", *options]
        return str(self.run("ansible-playbook", *argv).stdout)

    def ssh(self, machine: str, command: str, *, check: bool = True) -> str:
        """Run a command on a machine.

        Without `fleetfoot ssh`, whose start takes more of the CPU than what it is asked for.
        """
        if self.paths.project != PROJECT:
            return str(self.fleetfoot("ssh", machine, "--", command, check=check).stdout)
        found = Fleet.of_stack(self.name).read(machine)
        if found is None:
            assert not check, f"there is no machine {machine}"
            return ""
        done = subprocess.run(
            [*ssh.command(self.name), f"root@{found.address}", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
            check=False,
        )
        assert not check or done.returncode == 0, f"{machine}: {command}:\n{done.stdout}"
        return done.stdout

    def boot(self, machine: str) -> str:
        """Return the ID of a machine's boot; empty while it does not answer."""
        said = self.ssh(machine, "cat /proc/sys/kernel/random/boot_id", check=False).strip()
        return said if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", said) else ""

    def machine(self, name: str) -> dict[str, Any]:
        """Return a machine's row of the status."""
        return next(row for row in self.status()["machines"] if row["name"] == name)

    def down(self) -> Any:
        """Take it down and forget its configuration."""
        done = self.fleetfoot("down", "--yes", check=False)
        if done.returncode == 0:
            self.file.unlink(missing_ok=True)
        return done


def run(*argv: str | Path, check: bool = True, timeout: float = 1200) -> str:
    """Run a program of the virtual environment, or another by its path; return what it printed.

    Raises:
        AssertionError: It failed, unless `check` is False; the message has the end of its output.
    """
    done = subprocess.run(
        [BIN / argv[0], *argv[1:]],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout[-12000:]
    return done.stdout


class Front:
    """A client of a group's front end on the first control machine.

    Args:
        stack: The environment.
        group: Whose front end.
        identity: Whose certificate to show, a folder below the stack's `pki`.
        token: Bearer token.
        user: Whom it speaks for; the identity must be allowed to.
        member: A group of that user.
    """

    def __init__(
        self,
        stack: Stack,
        group: str,
        *,
        identity: str = "",
        token: str = "",
        user: str = "",
        member: str = "",
    ) -> None:
        pki = stack.paths.root / "pki"
        self._context = ssl.create_default_context(cafile=str(pki / "kubernetes" / "ca.crt"))
        if identity:
            pair = (pki / identity / "client.crt", pki / identity / "client.key")
            self._context.load_cert_chain(*pair)
        self._url = f"https://{stack.machine('control-1')['address']}:{API_PORTS[group]}"
        self._headers = {
            **({"Authorization": f"Bearer {token}"} if token else {}),
            **({"Impersonate-User": user} if user else {}),
            **({"Impersonate-Group": member} if member else {}),
        }

    def send(
        self, path: str, method: str = "GET", body: Any = None, *, timeout: float = 60
    ) -> tuple[int, Message, str]:
        """Return status, headers and body of an answer.

        Args:
            path: Whereto.
            method: How.
            body: What to send, as plain data; a PATCH merges it.
            timeout: Seconds to wait for it.

        Raises:
            TimeoutError: There was none in time.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, dict(self._headers), method=method)
        if method == "PATCH":
            request.add_header("Content-Type", "application/merge-patch+json")
        try:
            with urllib.request.urlopen(request, context=self._context, timeout=timeout) as reply:
                return reply.status, reply.headers, reply.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.headers, refused.read().decode()


def ask(
    stack: Stack, group: str, path: str, *, identity: str = "", token: str = ""
) -> tuple[int, Message]:
    """Return status and headers of a read; see `Front`."""
    return Front(stack, group, identity=identity, token=token).send(path)[:2]


class NodeWatch(threading.Thread):
    """What a watch of the apiserver showed of the nodes, while a `with` block ran.

    Attributes:
        seen: Name, whether it was Ready, whether it took pods; in the order of the changes.
    """

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[str, bool, bool]] = []
        self._watch = stack.start("fleetfoot", "kubectl", "--", "get", "nodes", "-w", "-o", "json")

    def __enter__(self) -> NodeWatch:
        self.start()
        eventually(lambda: self.seen)
        return self

    def __exit__(self, *_: object) -> None:
        with self._watch:
            self._watch.terminate()
            self.join()

    def run(self) -> None:
        text = ""
        for line in self._watch.stdout or ():
            text += line
            if line == "}\n":
                node, text = json.loads(text), ""
                schedulable = not node["spec"].get("unschedulable")
                self.seen.append((node["metadata"]["name"], is_ready(node), schedulable))

    @property
    def fewest(self) -> int:
        """The fewest nodes that were of use at once, after each had been seen first."""
        usable: dict[str, bool] = {}
        counts = []
        for name, ready, schedulable in self.seen:
            usable[name] = ready and schedulable
            counts.append(sum(usable.values()))
        first = {name for name, *_ in self.seen[:2]}
        return min(counts[len(first) - 1 :])


def eventually(check: Callable[[], Any], timeout: float = 120, pause: float = 1.0) -> Any:
    """Return what `check` returns once that is true.

    Raises:
        AssertionError: It did not become true in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {timeout} s: {check}"
        time.sleep(pause)


def assert_nothing_left(stack: str, addresses: str) -> None:
    """Require that a stack left nothing on the host.

    Args:
        stack: Its name.
        addresses: How its addresses begin.
    """

    def said(*argv: str) -> str:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    assert f"fleetfoot-{stack}" not in said("ip", "netns", "list")
    assert f"/.fleetfoot/{stack}/" not in Path("/proc/mounts").read_text()
    assert not (STATE / stack).exists()
    assert not (Path("/run/fleetfoot") / stack).exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/fleetfoot/{stack}"))
    assert addresses not in said("ip", "route")
    assert addresses not in said("nft", "list", "ruleset")
    assert addresses not in said("ip", "-4", "address")
    for found in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = found.read_text(errors="replace")
        except OSError:
            continue
        assert f"/.fleetfoot/{stack}/" not in words, words
