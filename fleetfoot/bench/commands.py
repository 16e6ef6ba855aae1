"""`fleetfoot bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fleetfoot.console import cell, err, out
from fleetfoot.errors import FleetfootError

if TYPE_CHECKING:
    from fleetfoot.bench.report import Report

__all__ = ["bench"]

bench = typer.Typer(help="Measure a figure afresh: all arms in one run.", no_args_is_help=True)

JsonFile = Annotated[
    Path, typer.Option("--json", help="Where the result goes; the picture stands beside it.")
]


@bench.command("boot")
def bench_boot(
    target: JsonFile,
    rounds: Annotated[int, typer.Option(min=1, help="Machines of each image.")] = 3,
) -> None:
    """Compare from start to Ready: the serverless image against the generic one."""
    # Here, for drawing takes a second to import and most commands draw nothing.
    from fleetfoot.bench import boot  # noqa: PLC0415

    report = boot.run(target, rounds, progress=lambda line: err.print(line, highlight=False))
    table = Table("metric", *report.arms, "ratio")
    for key, ratio in report.ratios.items():
        cells = [f"{metrics[key]:,.1f}" for metrics in report.arms.values()]
        table.add_row(key, *cells, f"{ratio:.2f}")
    out.print(table)


@bench.command("apiserver")
def bench_apiserver(
    target: JsonFile,
    rounds: Annotated[int, typer.Option(min=1, help="How often each arm is measured.")] = 3,
    nodes: Annotated[int, typer.Option(min=1, max=1000, help="Simulated nodes.")] = 500,
    seconds: Annotated[
        int, typer.Option(min=2, help="How long each figure is measured, in windows of 12 s.")
    ] = 30,
    disk: Annotated[
        bool, typer.Option("--disk", help="Let etcd write to the host's disk instead of memory.")
    ] = False,
) -> None:
    """Compare what online feels of an offline storm: one apiserver, lanes, split groups."""
    # Here, for drawing takes a second to import and most commands draw nothing.
    from fleetfoot.bench import apiserver  # noqa: PLC0415

    report = apiserver.run(
        target,
        rounds,
        nodes,
        seconds,
        disk=disk,
        progress=lambda line: err.print(line, highlight=False, soft_wrap=True),
    )
    _print_arms(report)


@bench.command("failover")
def bench_failover(
    target: JsonFile,
    rounds: Annotated[int, typer.Option(min=1, help="How often each process is killed.")] = 3,
) -> None:
    """Kill the leading scheduler and an apiserver under load: how soon is the next pod bound?"""
    from fleetfoot.bench import failover  # noqa: PLC0415  (Kubernetes' client takes a second)

    report = failover.run(target, rounds, lambda line: err.print(line, highlight=False))
    _print_arms(report)


@bench.command("pull")
def bench_pull(
    target: JsonFile,
    rounds: Annotated[int, typer.Option(min=1, help="Starts of each workload in each arm.")] = 3,
    workload: Annotated[
        list[str] | None,
        typer.Option(help="command, postgres, datascience, spark; again for more; all otherwise."),
    ] = None,
) -> None:
    """Compare from a pod's creation to its first answer: images pulled whole, and lazily."""
    from fleetfoot.bench import pull  # noqa: PLC0415  (Kubernetes' client takes a second)

    known = [one.name for one in pull.WORKLOADS]
    if strangers := sorted(set(workload or ()) - set(known)):
        raise FleetfootError(
            f"--workload: there is no {', '.join(strangers)}",
            "nothing was measured",
            f"known: {', '.join(known)}",
        )
    report = pull.run(
        target,
        rounds,
        workload or (),
        progress=lambda line: err.print(line, highlight=False, soft_wrap=True),
    )
    _print_arms(report)


def _print_arms(report: Report) -> None:
    """Metrics of all arms, their ratios, and last whether the goals were met."""
    table = Table("metric", *report.arms)
    for key in dict.fromkeys(key for metrics in report.arms.values() for key in metrics):
        cells = (
            f"{metrics[key]:,.3g}" if key in metrics else "-" for metrics in report.arms.values()
        )
        table.add_row(key, *cells)
    out.print(table)
    for key, ratio in report.ratios.items():
        out.print(f"{key}: {ratio:.2f}", highlight=False)
    if "etcd_data" in report.setup:
        out.print(f"etcd wrote to: {report.setup['etcd_data']}", highlight=False)
    goals = Table("goal", "limit", "measured", "met")
    for key, goal in report.goals.items():
        limit = f"{'at least' if goal.at_least else 'at most'} {goal.limit:g}"
        goals.add_row(key, limit, f"{goal.measured:,.3g}", cell(goal.met))
    out.print(goals)
