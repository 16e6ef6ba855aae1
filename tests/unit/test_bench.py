"""What benches write: stable keys, medians, a picture."""

import json
from pathlib import Path
from typing import Any

import pytest

from fleetfoot.bench import apiserver, cluster, failover, plot, pull
from fleetfoot.bench.load import Side
from fleetfoot.bench.report import Goal, Report, medians, now, summary
from fleetfoot.bench.windows import Window, plain, turns
from fleetfoot.errors import FleetfootError
from fleetfoot.machines.ledger import STAGES
from fleetfoot.stack import config


def test_medians_are_of_metrics_that_every_round_has() -> None:
    rounds = [{"a": 3.0, "b": 1.0}, {"a": 1.0}, {"a": 2.0, "b": 5.0}]
    assert medians(rounds) == {"a": 2.0}


@pytest.mark.parametrize("changes", [{}, apiserver._CHANGES, failover._changes()])
def test_a_bench_has_a_configuration_that_is_not_refused(changes: dict[str, Any]) -> None:
    config.load({**cluster._CONFIG, **changes}, host_memory_mib=64 << 10)


def test_one_bad_round_is_not_hidden_by_a_median() -> None:
    rounds = [{"p99": 1.0, "failed": 0.0, "rate": 0.0} for _ in range(2)]
    rounds.append({"p99": 9.0, "failed": 57.0, "rate": 0.5})
    found = summary(rounds, sums=["failed"], worst=["rate"])
    assert found == {"p99": 1.0, "failed": 57.0, "rate": 0.5}


def test_a_goal_says_its_limit_what_was_measured_and_whether_it_was_met() -> None:
    assert Goal(1.5, 1.50049).plain() == {"at_most": 1.5, "measured": 1.50049, "met": False}
    assert Goal(10, 12.0, at_least=True).plain() == {"at_least": 10, "measured": 12.0, "met": True}
    assert not Goal(0, float("nan")).met


def test_the_file_has_the_stable_keys(tmp_path: Path) -> None:
    arms = {"generic": {"ssh": 6.00049}, "serverless": {"ssh": 2.0}}
    report = Report("boot", arms, {"ssh": 3.0}, {"generic": [{"ssh": 6.0}]}, now())
    target = tmp_path / "deep/boot.json"
    report.write(target)
    data = json.loads(target.read_text())
    assert set(data) == {
        *("name", "arms", "ratios", "goals", "rounds", "setup", "host", "versions", "started")
    }
    assert data["arms"]["generic"]["ssh"] == pytest.approx(6.0)
    assert data["host"]["cpus"] >= 1
    assert data["host"]["memory_mib"] > 0
    assert {"fleetfoot", "qemu", "kubelet", "containerd"} <= set(data["versions"])


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_picture_is_drawn(tmp_path: Path, suffix: str, magic: bytes) -> None:
    target = tmp_path / f"boot.{suffix}"
    bars = {"generic": {"kernel": 4.0, "node": 20.0}, "serverless": {"kernel": 2.0}}
    plot.stages(target, bars, STAGES, "stages")
    assert target.read_bytes().startswith(magic)


#: What k6 gives to handleSummary, as far as it is read.
SUMMARY = {
    "latency": {"values": {"p(50)": 9.0, "p(99)": 90.0, "max": 99.0, "count": 900}},
    "latency{phase:storm}": {"values": {"p(50)": 4.0, "p(99)": 40.0, "max": 50.0, "count": 90}},
    "latency{phase:storm,op:get}": {"values": {"p(50)": 3.0, "p(99)": 30.0, "count": 60}},
    "latency{phase:storm,op:list}": {"values": {"p(50)": 0.0, "p(99)": 0.0, "count": 0}},
    "latency{phase:idle}": {"values": {"p(50)": 0.0, "p(99)": 0.0, "max": 0.0, "count": 0}},
    "failed{phase:storm}": {"values": {"rate": 0.1, "passes": 9, "fails": 81}},
    "failed{phase:idle}": {"values": {"rate": 0, "passes": 0, "fails": 0}},
    "dropped_iterations": {"values": {"count": 10, "rate": 1.0}},
    "watches_failed{phase:storm}": {"values": {"rate": 0.25, "passes": 1, "fails": 3}},
    "pods{phase:storm}": {"values": {"count": 20, "rate": 2.0}},
}


def test_requests_that_could_not_be_sent_in_time_are_errors() -> None:
    side = Side.parse(SUMMARY, "storm", 10)
    assert (side.p50, side.p99, side.pods) == (4.0, 40.0, 2.0)
    assert side.watch_error_rate == pytest.approx(0.25)
    assert side.throughput == pytest.approx(8.1)
    assert side.error_rate == pytest.approx(0.19)
    assert side.p99_of == {"get": 30.0}


@pytest.mark.parametrize("phase", ["idle", "saturated"])
def test_a_phase_without_an_answer_is_refused(phase: str) -> None:
    with pytest.raises(FleetfootError, match=f"no request of phase {phase} was answered"):
        Side.parse(SUMMARY, phase, 10)


def test_phases_take_turns() -> None:
    found = turns({"idle": 8, "storm": 4}, 12, 2, 100.0)
    assert found == [
        Window("idle", 100, 108, 120),
        Window("storm", 120, 124, 136),
        Window("idle", 136, 144, 156),
        Window("storm", 156, 160, 172),
    ]
    assert json.loads(plain(found[:1])) == [["idle", 100_000, 108_000, 120_000]]


def test_the_storm_is_the_smallest_that_reaches_ten_times_idle() -> None:
    asked = []

    def growth(engines: int) -> float:
        asked.append(engines)
        return 2.0 * engines

    assert apiserver.smallest_storm(growth) == 8
    assert asked == [1, 2, 4, 8, 8]


def test_a_storm_that_reaches_it_once_by_luck_is_too_small() -> None:
    looks = iter([10.5, 9.0, 21.0, 22.0])
    assert apiserver.smallest_storm(lambda _: next(looks)) == 2


def test_a_machine_that_no_storm_reaches_is_told() -> None:
    with pytest.raises(FleetfootError, match="less than 10 times"):
        apiserver.smallest_storm(lambda _: 1.1)


ARMS = {
    arm: {
        "idle_p50_ms": 2.0,
        "idle_p99_ms": 10.0,
        "online_p50_ms": 5.0,
        "online_p99_ms": p99,
        "storm_over_idle_p99": p99 / 10.0,
        "offline_throughput": throughput,
        "saturated_offline_throughput": full,
        "leader_changes": 0.0,
        "online_error_rate": 0.0,
        "late_offline_requests": 0.0,
    }
    for arm, p99, throughput, full in (
        ("shared", 120.0, 40.0, 60.0),
        ("shared_lanes", 80.0, 40.0, 60.0),
        ("split", 14.0, 32.0, 45.0),
    )
}


def test_arms_are_compared_by_what_the_storm_does_to_online() -> None:
    assert apiserver.ratios(ARMS) == pytest.approx(
        {
            "shared_storm_over_idle_p99": 12.0,
            "shared_lanes_storm_over_idle_p99": 8.0,
            "split_storm_over_idle_p99": 1.4,
            "shared_over_split_p99": 120 / 14,
            "offline_throughput": 0.8,
            "saturated_offline_throughput": 0.75,
        }
    )


def test_goals_of_the_apiserver_bench_are_judged_one_by_one() -> None:
    assert all(goal.met for goal in apiserver.goals(ARMS).values())
    worse = {
        "shared": {**ARMS["shared"], "storm_over_idle_p99": 9.9, "late_offline_requests": 1.0},
        "split": {
            **ARMS["split"],
            "leader_changes": 1.0,
            "offline_throughput": 29.0,
            "online_error_rate": 0.001,
        },
    }
    met = {name: goal.met for name, goal in apiserver.goals(worse).items()}
    assert met == {
        "split_storm_over_idle_p99": True,
        "shared_storm_over_idle_p99": False,
        "offline_throughput": False,
        "leader_changes": False,
        "online_error_rate": False,
        "late_offline_requests": False,
    }


def kills(*waited: float, failed: float = 0.0, dropped: float = 0.0) -> list[dict[str, float]]:
    counts = {"online_requests": 1250.0, "resent": 3.0, "failed": failed, "dropped": dropped}
    return [{"next_bound_s": seconds, "online_p99_ms": 9.0, **counts} for seconds in waited]


def test_the_worst_failover_and_every_failed_request_count() -> None:
    rounds = {
        "idle": kills(0.1, 0.1, 0.1),
        "scheduler": [*kills(3.0, 5.1), *kills(2.0, failed=1.0)],
        "apiserver": kills(0.3, 0.2, 0.4, dropped=2.0),
    }
    arms = failover.arms_of(rounds)
    assert arms["scheduler"]["next_bound_s"] == 3.0
    assert arms["ha"] == {
        "scheduler_seconds": 5.1,
        "apiserver_seconds": 0.4,
        "failed_online_requests": 1.0,
        "dropped_online_requests": 6.0,
    }
    assert not any(goal.met for goal in failover.goals(arms).values())
    good = failover.arms_of(dict.fromkeys(rounds, kills(0.5)))
    assert all(goal.met for goal in failover.goals(good).values())


def test_a_picture_of_both_sides_is_drawn(tmp_path: Path) -> None:
    target = tmp_path / "apiserver.png"
    plot.sides(target, ARMS, "two sides")
    assert target.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_kills_is_drawn(tmp_path: Path) -> None:
    target = tmp_path / "failover.png"
    plot.failover(target, {"idle": kills(0.1), "scheduler": kills(3.0, 2.0)}, 5.0, "kills")
    assert target.read_bytes().startswith(b"\x89PNG")


def pulls(times_sooner: float, moved: float) -> dict[str, dict[str, float]]:
    """Arms of bench pull in which lazy images answer so many times sooner, after so many bytes."""
    reads = {"cold_mb_s": 10.0, "warm_mb_s": 100.0}
    arms = {}
    for one in pull.WORKLOADS:
        whole = {"moved": 1.0, "complete_s": 100.0, **reads}
        arms[f"{one.name} eager"] = {"answer_s": 100.0, "again_s": 4.0, **whole}
        arms[f"{one.name} tuned"] = {"answer_s": 80.0, **whole}
        arms[f"{one.name} soci"] = {"answer_s": 10.0, **whole}
        ours = {**whole, "answer_s": 100 / times_sooner, "moved": moved, "daemons_mb": 60.0}
        arms[f"{one.name} lazy"] = arms[f"{one.name} traced"] = ours
    return arms


def test_lazy_starts_are_held_against_their_goals() -> None:
    assert all(goal.met for goal in pull.goals(pulls(20, 0.1), pull.WORKLOADS).values())
    found = pull.goals(pulls(6, 0.3), pull.WORKLOADS)
    missed = {name for name, goal in found.items() if not goal.met}
    moved = {"command_moved", "postgres_moved", "datascience_moved"}
    slower = {f"{one.name}_sooner_than_soci" for one in pull.WORKLOADS}
    assert missed == {"command_times_sooner", *moved, *slower}


def test_ratios_of_pulls_have_stable_names() -> None:
    found = pull.ratios(pulls(5, 0.1), pull.WORKLOADS)
    assert found["spark.eager_over_lazy"] == pytest.approx(5)
    assert found["spark.soci_over_lazy"] == pytest.approx(0.5)
    assert found["spark.bytes_fraction"] == 0.1
    assert found["spark.eager_over_again"] == 25
    assert found["spark.complete_read"] == 1


def test_a_picture_of_pulls_is_drawn(tmp_path: Path) -> None:
    target = tmp_path / "pull.png"
    values = {"command": {"eager": 100.0, "lazy": 5.0}}
    plot.pulls(target, values, values, "pulls")
    assert target.read_bytes().startswith(b"\x89PNG")


def test_pulls_are_told_as_soon_as_a_workload_was_measured_in_each_arm() -> None:
    chosen = pull.WORKLOADS[:2]
    found = pulls(20, 0.1)
    measured = {
        f"{one.name} {arm}": [found[f"{one.name} {arm}"]] for one in chosen for arm in pull.ARMS
    }
    measured[f"{chosen[1].name} {pull.ARMS[-1]}"] = []
    told = pull._report(measured, chosen, "", {"link": {}})
    assert set(told.arms) == {f"{chosen[0].name} {arm}" for arm in pull.ARMS}
    assert all(name.startswith(("command", "daemons")) for name in told.goals)
    assert told.setup["rounds"] == 1
