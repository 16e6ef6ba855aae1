"""The `fleetfoot` command."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fleetfoot.cluster import Cluster
from fleetfoot.engine import EngineError, PlainDisplay
from fleetfoot.errors import FleetfootError
from fleetfoot.machines.fleet import Fleet
from fleetfoot.paths import StackPaths
from fleetfoot.stack.driver import Result, driver
from fleetfoot.stack.teardown import teardown
from fleetfoot.status import Status, gather

__all__ = ["app", "main"]

app = typer.Typer(
    help="A serverless-style, co-located Kubernetes fleet.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_out = Console()
_err = Console(stderr=True)

StackName = Annotated[
    str, typer.Option("--stack", "-s", envvar="STACK", help="Stack to work on (Pulumi.NAME.yaml).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command; what a user can act on is told as a sentence."""
    try:
        app()
    except (FleetfootError, EngineError) as told:
        _err.print(f"[bold red]error:[/] {told}", highlight=False)
        sys.exit(1)


def _end(result: Result) -> None:
    _err.print(result.summary, highlight=False)
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def up(stack: StackName = "local") -> None:
    """Make the stack what its configuration says; continues where an earlier run stopped."""
    runner = driver(stack, PlainDisplay())
    _err.print(f"stack {stack}, {runner.name} engine", highlight=False)
    _end(runner.up())


@app.command()
def preview(stack: StackName = "local") -> None:
    """Tell what `up` would change, machine by machine."""
    _end(driver(stack, PlainDisplay()).preview())


@app.command()
def refresh(stack: StackName = "local") -> None:
    """Let the state say what really runs."""
    _end(driver(stack, PlainDisplay()).refresh())


@app.command()
def down(
    stack: StackName = "local",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove the stack and all it left on this host, except packages and caches."""
    if not yes:
        typer.confirm(f"Remove the stack {stack} with its machines and their data?", abort=True)
    result = driver(stack, PlainDisplay()).destroy()
    teardown(stack, keep_state=not result.ok)
    _end(result)


@app.command()
def outputs(stack: StackName = "local", as_json: AsJson = False) -> None:
    """Print the stack's outputs."""
    found = driver(stack).outputs()
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table("output", "value")
    for key, value in found.items():
        table.add_row(key, value if isinstance(value, str) else json.dumps(value)[:200])
    _out.print(table)


@app.command()
def status(stack: StackName = "local", as_json: AsJson = False) -> None:
    """Show machines, apiservers and nodes."""
    found = gather(stack)
    if as_json:
        print(json.dumps(found.plain(), indent=1))
        return
    _print_status(found)


def _print_status(found: Status) -> None:
    plain = found.plain()
    _out.print(f"stack {plain['stack']}, {plain['engine']} engine", highlight=False)
    for section in ("machines", "apiservers", "nodes"):
        rows: list[dict[str, Any]] = plain[section]
        if not rows:
            continue
        table = Table(*rows[0], title=section, title_justify="left")
        for row in rows:
            table.add_row(*(_cell(value) for value in row.values()))
        _out.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "[green]yes[/]" if value else "[red]no[/]"
    return ", ".join(value) if isinstance(value, list) else str(value)


_PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_PASS_THROUGH)
def kubectl(context: typer.Context, stack: StackName = "local") -> None:
    """Run kubectl on the stack's cluster: fleetfoot kubectl -- get nodes."""
    argv = Cluster(stack).command(*context.args)
    os.execv(argv[0], argv)


@app.command(context_settings=_PASS_THROUGH)
def ssh(
    context: typer.Context,
    machine: Annotated[str, typer.Argument(help="Machine name, as in `fleetfoot status`.")],
    stack: StackName = "local",
) -> None:
    """Enter a machine, or run a command on it: fleetfoot ssh worker-1 -- uname -a."""
    found = Fleet.of_stack(stack).read(machine)
    if found is None:
        names = ", ".join(m.spec.name for m in Fleet.of_stack(stack).all())
        raise FleetfootError(f"there is no machine {machine!r} in {stack}", fix=f"known: {names}")
    os.execvp("ssh", [*ssh_command(stack), f"root@{found.address}", *context.args])


def ssh_command(stack: str) -> list[str]:
    """Return ssh with the stack's key and its pinned host keys."""
    paths = StackPaths(stack)
    options = [f"UserKnownHostsFile={paths.known_hosts}", "StrictHostKeyChecking=yes"]
    options += ["IdentitiesOnly=yes", "LogLevel=ERROR"]
    return ["ssh", "-i", str(paths.ssh_key), *(f"-o{option}" for option in options)]
