"""The boot ledger's arithmetic on what machines really say."""

import pytest

from fleetfoot.machines import ledger

# As a serverless machine said it (shortened).
SAID = """\
UserspaceTimestampMonotonic=2650000
FinishTimestampMonotonic=0
ExecMainStartTimestampMonotonic=3900000
ActiveEnterTimestampMonotonic=5200000
[    2.012345] Run /init as init process
{"__CURSOR":"s=1","__MONOTONIC_TIMESTAMP":"9100000","MESSAGE":"I1121 kubelet"}
"""


def test_marks_stand_on_the_machines_clock() -> None:
    marks = ledger.marks_of(SAID, 0.5, own_kernel=True)
    assert marks == pytest.approx(
        {
            "firmware": 0.5,
            "kernel": 2.512345,
            "initrd": 3.15,
            "services": 4.4,
            "runtime": 5.7,
            "node": 9.6,
        }
    )
    assert list(marks) == list(ledger.STAGES)


def test_lengths_add_up_to_the_last_mark() -> None:
    found = ledger.Ledger("worker-1", "serverless", ledger.marks_of(SAID, 0.5, own_kernel=True))
    assert sum(found.lengths.values()) == pytest.approx(9.6)
    assert found.lengths["kernel"] == pytest.approx(2.012345)


def test_a_control_machine_has_no_kernel_and_is_no_node() -> None:
    said = "UserspaceTimestampMonotonic=100000000\nFinishTimestampMonotonic=103000000\n"
    said += "ExecMainStartTimestampMonotonic=0\nActiveEnterTimestampMonotonic=0\n"
    marks = ledger.marks_of(said, -99.5, own_kernel=False)
    assert marks == pytest.approx({"services": 3.5})


def test_a_stage_that_was_not_reached_is_absent() -> None:
    said = SAID.replace("ActiveEnterTimestampMonotonic=5200000", "ActiveEnterTimestampMonotonic=0")
    marks = ledger.marks_of(said, 0.0, own_kernel=True)
    assert "runtime" not in marks
