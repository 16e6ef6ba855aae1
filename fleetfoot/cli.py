"""The `fleetfoot` command."""

from __future__ import annotations

import enum
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich import box
from rich.markup import escape
from rich.table import Table

from fleetfoot.bench.commands import bench
from fleetfoot.cluster import Cluster
from fleetfoot.console import cell, err, out
from fleetfoot.engine import Display, EngineError
from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.commands import lazy
from fleetfoot.machines import ledger, ssh
from fleetfoot.machines.fleet import Fleet
from fleetfoot.paths import PROJECT, StackPaths, size_of
from fleetfoot.stack import bootimage, checks, sides
from fleetfoot.stack.driver import Result, driver
from fleetfoot.stack.fields import LABEL
from fleetfoot.stack.rolling import WHOLE_STACK
from fleetfoot.stack.teardown import teardown
from fleetfoot.status import Status, gather

__all__ = ["app", "main"]

app = typer.Typer(
    help="A serverless-style, co-located Kubernetes fleet.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
image = typer.Typer(help="Machine and container images.", no_args_is_help=True)
app.add_typer(image, name="image")
app.add_typer(bench, name="bench")
app.add_typer(lazy, name="lazy")
_OUTPUT_WIDTH = 60

StackName = Annotated[
    str, typer.Option("--stack", "-s", envvar="STACK", help="Stack to work on (Pulumi.NAME.yaml).")
]
Picture = Annotated[Path | None, typer.Option(help="With --boot: draw it as well (PNG or SVG).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command; what a user can act on is told as a sentence."""
    try:
        app()
    except (FleetfootError, EngineError) as told:
        err.print(f"[bold red]error:[/] {escape(str(told))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _end(result: Result) -> None:
    err.print(result.summary, highlight=False)
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def up(stack: StackName = "local") -> None:
    """Make the stack what its configuration says; continues where an earlier run stopped."""
    runner = driver(stack, Display())
    err.print(f"stack {stack}, {runner.name} engine", highlight=False)
    _end(runner.up())


@app.command()
def preview(stack: StackName = "local") -> None:
    """Tell what `up` would change, machine by machine."""
    runner = driver(stack, Display(preview=True))
    err.print(f"preview of {stack}, {runner.name} engine: nothing is changed", highlight=False)
    _end(runner.preview())


@app.command()
def refresh(stack: StackName = "local") -> None:
    """Let the state say what really runs."""
    _end(driver(stack, Display()).refresh())


@app.command()
def down(
    stack: StackName = "local",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove the stack and all it left on this host, except packages and caches."""
    if not yes:
        typer.confirm(f"Remove the stack {stack} with its machines and their data?", abort=True)
    os.environ[WHOLE_STACK] = "1"
    runner = driver(stack, Display())
    result = runner.destroy()
    with runner.alone() as empty:
        if empty or not result.ok:
            teardown(stack, keep_state=not result.ok)
    _end(result)
    err.print("Packages and caches stay; `fleetfoot image prune` frees what no definition needs.")
    if (backups := StackPaths(stack).backups).exists():
        err.print(f"So do backups, with the keys of Secrets: {backups.relative_to(PROJECT)}")


@app.command()
def outputs(
    name: Annotated[str, typer.Argument(help="Print this one's value alone.")] = "",
    stack: StackName = "local",
    as_json: AsJson = False,
) -> None:
    """Print the stack's outputs, or one of them."""
    found = driver(stack).outputs()
    if name:
        if name not in found:
            known = ", ".join(found) or "none: run `make up` first"
            raise FleetfootError(f"{stack} has no output {name!r}", fix=f"known: {known}")
        value = found[name]
        print(json.dumps(value) if as_json or not isinstance(value, str) else value)
        return
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table("output", "value")
    for key, value in found.items():
        table.add_row(key, value if isinstance(value, str) else _beginning(key, value))
    out.print(table)


def _beginning(key: str, value: Any) -> str:
    """Return as much of a structured output as a table has room for."""
    text = json.dumps(value)
    if len(text) <= _OUTPUT_WIDTH:
        return text
    return f"{text[:_OUTPUT_WIDTH]}... (`fleetfoot outputs {key}` has all of it)"


@app.command()
def status(
    stack: StackName = "local",
    as_json: AsJson = False,
    boot: Annotated[
        bool, typer.Option("--boot", help="Show how long each stage of a machine's start took.")
    ] = False,
    picture: Picture = None,
) -> None:
    """Show machines, apiservers, etcd and nodes, or (--boot) the stages of the machines' start."""
    if boot:
        _boot_ledgers(stack, as_json=as_json, picture=picture)
        return
    if picture:
        raise FleetfootError("--picture shows the stages of a start", fix="add --boot")
    found = gather(stack)
    if as_json:
        print(json.dumps(found.plain(), indent=1))
        return
    _print_status(found)


def _boot_ledgers(stack: str, *, as_json: bool, picture: Path | None) -> None:
    fleet = Fleet.of_stack(stack)
    running = [machine.spec.name for machine in fleet.all() if machine.running]
    found = [ledger.collect(fleet, name) for name in running]
    if picture:
        # Here, for drawing takes a second to import.
        from fleetfoot.bench import plot  # noqa: PLC0415

        bars = {f"{one.machine} ({one.image})": one.lengths for one in found}
        plot.stages(picture, bars, ledger.STAGES, f"Start of the machines of {stack}")
    if as_json:
        print(json.dumps([one.plain() for one in found], indent=1))
        return
    # Without edges it fits into 80 columns.
    table = Table(
        title="seconds since the machine's start; - where a machine has no such stage",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("machine", "image", *ledger.STAGES.values()):
        table.add_column(heading, no_wrap=heading in ("machine", "image"))
    for one in found:
        cells = [f"{one.marks[key]:.1f}" if key in one.marks else "-" for key in ledger.STAGES]
        table.add_row(one.machine, one.image, *cells)
    out.print(table)


def _print_status(found: Status) -> None:
    plain = found.plain()
    out.print(f"stack {plain['stack']}, {plain['engine']} engine", highlight=False)
    for section, rows in plain.items():
        if not rows or isinstance(rows, str):
            continue
        table = Table(*rows[0], title=section, title_justify="left")
        for row in rows:
            table.add_row(*(cell(value) for value in row.values()))
        out.print(table)


_PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}


class _Identity(enum.StrEnum):
    """Who kubectl is, and so at which group of apiservers."""

    ONLINE = "online"
    OFFLINE = "offline"
    BREAK_GLASS = "break-glass"


@app.command(context_settings=_PASS_THROUGH)
def kubectl(
    context: typer.Context,
    stack: StackName = "local",
    identity: Annotated[
        _Identity,
        typer.Option(
            "--identity",
            help="An operator at the online apiservers; a submitter at the offline ones; or, when"
            " nothing else is let through, one whom no lane and no access rule bounds.",
        ),
    ] = _Identity.ONLINE,
) -> None:
    """Run kubectl on the stack's cluster: fleetfoot kubectl -- get nodes."""
    argv = Cluster(stack, identity.value).command(*context.args)
    os.execv(argv[0], argv)


@app.command("sides")
def print_sides(
    offline_url: Annotated[
        str, typer.Option(help="Where pods of the offline side reach their apiservers.")
    ],
    namespace: Annotated[
        list[str], typer.Option(help="Where the offline side works; may be given several times.")
    ] = [sides.OFFLINE_NAMESPACE],  # noqa: B006  # typer's way to say the default of many
    online_audience: Annotated[
        list[str],
        typer.Option(
            help="Audience of tokens that online accepts (kube_apiserver_audiences, else"
            " kube_apiserver_issuer); may be given several times."
        ),
    ] = [sides.ONLINE_AUDIENCE],  # noqa: B006  # as above
) -> None:
    """Print what keeps online and offline apart, for clusters that no stack of Pulumi is.

    Lanes, admission, the offline namespaces and their submitters' role, as YAML:
    fleetfoot sides --offline-url https://api-offline.ZONE:6444 | kubectl apply --server-side -f -
    """
    if not re.fullmatch(r"https://[a-z0-9]([-.a-z0-9]*[a-z0-9])?:[0-9]+", offline_url):
        raise FleetfootError(
            f"{offline_url!r} is no address of apiservers",
            "pods could not reach them, and the audience of their tokens would be wrong",
            "write https://api-offline.ZONE:6444 with the zone of your inventory (fleetfoot_zone)",
        )
    problems = checks.namespaces(namespace, "--namespace")
    problems += [
        f"--namespace: {name!r} is no DNS label"
        for name in namespace
        if not re.fullmatch(LABEL, name)
    ]
    problems += [
        f"--online-audience: {audience!r} is no audience"
        for audience in online_audience
        if not re.fullmatch(r"[^'\"\\\s]+", audience)
    ]
    if problems:
        raise FleetfootError("; ".join(problems), "nothing was printed", "correct the option")
    manifests = [
        *sides.lanes(namespace),
        *sides.admission(offline_url, namespace, online_audience),
        *sides.workplace(namespace),
    ]
    # Through JSON, for what objects share would be written as references.
    print(yaml.safe_dump_all(json.loads(json.dumps(manifests)), sort_keys=False), end="")


@app.command("ssh", context_settings=_PASS_THROUGH)
def enter(
    context: typer.Context,
    machine: Annotated[str, typer.Argument(help="Machine name, as in `fleetfoot status`.")],
    stack: StackName = "local",
) -> None:
    """Enter a machine, or run a command on it: fleetfoot ssh worker-1 -- uname -a."""
    found = Fleet.of_stack(stack).read(machine)
    if found is None:
        names = ", ".join(m.spec.name for m in Fleet.of_stack(stack).all())
        raise FleetfootError(f"there is no machine {machine!r} in {stack}", fix=f"known: {names}")
    os.execvp("ssh", [*ssh.command(stack), f"root@{found.address}", *context.args])


@image.command("list")
def image_list(as_json: AsJson = False) -> None:
    """Show the images, and whether the cache has them as they are defined now."""
    rows = bootimage.known()
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("image", "key", "built", "MiB")
    for row in rows:
        size = f"{row['bytes'] / 2**20:.0f}" if row["built"] else ""
        table.add_row(row["name"], row["key"], cell(row["built"]), size)
    out.print(table)
    if older := bootimage.outdated(rows):
        freed = sum(size_of(folder) for folder in older) >> 20
        out.print(f"{len(older)} older ones take {freed} MiB: `fleetfoot image prune` frees them")


@image.command("prune")
def image_prune() -> None:
    """Remove cached images of earlier contents that no machine stands on."""
    for folder in bootimage.outdated(bootimage.known()):
        size = size_of(folder) >> 20
        shutil.rmtree(folder)
        out.print(f"{folder.name}: {size} MiB freed", highlight=False)


@image.command("build")
def image_build(
    names: Annotated[list[str], typer.Argument(help="Folders under images/.", metavar="NAME...")],
) -> None:
    """Build images into the cache, unless it has them."""
    for name in names:
        out.print(bootimage.boot_image(name)["path"], soft_wrap=True, highlight=False)
