"""The fault matrix: what passes and what fails."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.faults import report
from tests.faults.cluster import JOB
from tests.faults.verdict import Facts, Line, Row, goal, judge, next_step, sizes
from training.ledger import Ledger, expected_sum

STEPS, BATCH, ROWS = JOB["steps"], JOB["global_batch"], 1000


def journal(*starts: tuple[float, int, int]) -> list[Line]:
    """Each start (time, ranks, first step) makes a step each second from 3 s on, up to the next start or the end."""
    lines = []
    for (began, ranks, first), after in zip(starts, [*starts[1:], None], strict=True):
        lines.append(Line(began, "node1", f"rank 0/{ranks} node=node1 device=cpu pid={int(began)}"))
        count = STEPS - first + 1 if after is None else int(after[0] - began) - 10
        lines += [Line(began + 3 + at, "node1", f"step {first + at}/{STEPS} epoch 1 loss 1.0") for at in range(count)]
    return lines


def ledger(tmp_path: Path) -> str:
    written = Ledger(tmp_path, rows=ROWS, seed=1, active=True, resumed_at=0)
    total = 0
    for step in range(1, STEPS + 1):
        first, last = (step - 1) * BATCH, step * BATCH
        used = expected_sum(ROWS, 1, first, last)
        total = (total + used) % 2**60
        written.step(step=step, first=first, last=last, sum=used, total=total, world_size=3)
    written.flush()
    return written.file.read_text()


@pytest.fixture
def good(tmp_path) -> Facts:
    """A run of three ranks, hit at 120 s, that went on at step 15 after 5 s."""
    state = {"state": "done", "step": STEPS, "heldout_last": 1.5}
    return Facts(
        began=120.0, hit=120.5, lines=journal((100, 3, 1), (122, 3, 15)), state=state, ledger=ledger(tmp_path),
        weights="abc", boot=None, problems=[], notes=[],
        job=JOB,
    )  # fmt: skip


ROW = Row(number=1, fault="worker_killed", moment="mid")


def test_a_fault_that_ends_as_promised_passes(good):
    row = judge(ROW, "worker", good, good)
    assert (row.result, row.problems, row.ranks, row.weights) == ("pass", [], "3", "equal")
    assert (row.seconds, row.goal, row.heldout_difference) == (5.0, 10, 0.0)


def test_another_number_of_ranks_may_differ_by_rounding(good):
    other = {**good.state, "heldout_last": 1.5009}
    fewer = dataclasses.replace(good, lines=journal((100, 3, 1), (122, 2, 15)), weights="xyz", state=other)
    row = judge(ROW, "loud", fewer, good)
    assert (row.result, row.ranks, row.weights, row.goal) == ("pass", "3>2", "differ", 35)


BROKEN = {
    "not done": ({"state": {"state": "failed", "step": 7, "reason": "lost"}}, "failed 7/40: lost"),
    "never ended": ({"state": {}}, "did not end 0/40"),
    "no ledger": ({"ledger": ""}, "ledger: no ledger"),
    "other bits": ({"weights": "xyz"}, "the parameters differ"),
    "no model": ({"weights": ""}, "no parameters were exported"),
    "other loss": ({"state": {"state": "done", "step": 40, "heldout_last": 1.4989}}, "the held-out loss is -0.001"),
    "no number": ({"state": {"state": "done", "step": 40, "heldout_last": float("nan")}}, "the held-out loss is nan"),
    "too slow": ({"began": 114.0}, "11 s to the next step, 10 are allowed"),
    "no step after it": ({"began": 500.0, "hit": 501.0}, "no step after the fault"),
    "the moment never came": ({"began": 0.0, "hit": 0.0, "problems": ["Missed: no"]}, "Missed: no"),
    "a problem on the way": ({"problems": ["left on node3: a worker"]}, "left on node3"),
}


@pytest.mark.parametrize(("change", "problem"), BROKEN.values(), ids=BROKEN)
def test_a_fault_that_ends_otherwise_fails(good, change, problem):
    row = judge(ROW, "worker", dataclasses.replace(good, **change), good)
    assert row.result == "FAIL"
    assert any(said.startswith(problem) for said in row.problems), row.problems


UNTOUCHED = journal((100, 3, 1))
FEWER = journal((100, 3, 1), (122, 2, 15))
WITHOUT_EFFECT = {
    "nobody was started again": ({"lines": UNTOUCHED}, {"restarts": True}, "no worker was started again"),
    "all were started again": ({}, {"restarts": False}, "the workers were started again"),
    "nobody was lost": ({}, {"left": 2}, "steps were made by [3] ranks, and 2 were to be left"),
    "more were lost": ({"lines": FEWER}, {"left": 1}, "steps were made by [3, 2] ranks, and 1 were to be left"),
    "no start was seen": ({"lines": UNTOUCHED[1:]}, {}, "steps were made by [0] ranks"),
}


@pytest.mark.parametrize(("change", "expected", "problem"), WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT)
def test_a_fault_that_did_not_do_what_it_says_fails(good, change, expected, problem):
    row = judge(ROW, "", dataclasses.replace(good, **change), good, **expected)
    assert any(said.startswith(problem) for said in row.problems), row.problems


def test_one_that_did_passes(good):
    assert judge(ROW, "worker", good, good, restarts=True).result == "pass"
    assert judge(ROW, "loud", dataclasses.replace(good, lines=FEWER), good, restarts=True, left=2).result == "pass"
    assert judge(ROW, "", dataclasses.replace(good, lines=UNTOUCHED), good, restarts=False).result == "pass"


def test_an_undisturbed_run_of_other_ranks_is_nothing_to_compare_with(good):
    two = dataclasses.replace(good, lines=journal((100, 2, 1)))
    assert judge(ROW, "worker", good, two).problems == ["steps were made by [3] ranks, undisturbed by [2], which is 3"]


def test_a_lost_sample_fails(good):
    lines = good.ledger.splitlines(keepends=True)
    step = json.loads(lines[20])
    lines[20] = json.dumps({**step, "sum": step["sum"] + 1}) + "\n"
    row = judge(ROW, "worker", dataclasses.replace(good, ledger="".join(lines)), good)
    assert row.ledger == "lost" and "step 20 did not use exactly samples" in row.problems[0]


def test_the_time_is_that_to_the_first_step_behind_a_restart(good):
    under_way = Line(120.6, "node1", "step 18/40 epoch 1 loss 1.0")
    assert next_step(dataclasses.replace(good, lines=sorted([*good.lines, under_way]))) == 5.0
    untouched = dataclasses.replace(good, lines=journal((100, 3, 1)))
    assert next_step(untouched) == 0.5, "nothing was started again: the next step since it was complete"
    assert sizes(journal((100, 3, 1), (122, 2, 15), (160, 3, 20))) == [3, 2, 3]


def test_who_was_there_before_the_fault_was_not_started_by_it(good):
    """Before the first step a worker says that it is there when all are, which may be after the fault."""
    late = dataclasses.replace(good, began=90.0, hit=90.5, workers={("node1", 100), ("node2", 100)})
    alone = dataclasses.replace(late, lines=journal((100, 3, 1)))
    assert judge(ROW, "", alone, good, restarts=True).problems == ["no worker was started again"]
    assert next_step(alone) == 12.5, "the next step since the fault was complete"
    assert judge(ROW, "", late, good, restarts=True).problems == [] and next_step(late) == 35.0
    other = dataclasses.replace(alone, workers={("node2", 100)})
    assert judge(ROW, "", other, good, restarts=True).problems == [] and next_step(other) == 13.0
    booted = dataclasses.replace(alone, boot=5.0)
    assert judge(ROW, "", booted, good, restarts=True).problems == [], "its processes have the same numbers again"


def test_the_time_limits_are_those_of_the_issue():
    assert [goal(loss, "mid", 12.0, JOB) for loss in ("worker", "loud", "silent", "boot", "")] == [10, 35, 70, 42, None]
    assert goal("hangs", "mid", None, JOB) == goal("silent", "before", None, JOB) == 20 + 20 + 30
    assert goal("hangs", "before", None, JOB) == 60 + 20 + 30, "the ranks wait longer for their first step"
    assert goal("boot", "mid", None, JOB) is None


def test_the_table_says_what_failed_and_what_was_skipped(good):
    failed = judge(ROW, "worker", dataclasses.replace(good, weights="xyz"), good)
    skipped = Row(number=20, fault="clock_set_back", moment="mid", skipped="containers have the clock of their host")
    shown = report.table([judge(ROW, "worker", good, good), failed, skipped]).splitlines()
    assert " ".join(shown[1].split()) == "1 worker_killed mid done 40/40 whole 3 equal +0e+00 5.0 s 10.0 s pass"
    assert shown[2].endswith("FAIL") and shown[3].endswith("skipped")
    assert shown[4] == "worker_killed mid: FAIL: the parameters differ from the undisturbed run's"
    assert shown[5] == "clock_set_back mid: skipped: containers have the clock of their host"
    assert shown[6] == "1 pass, 1 FAIL, 1 skipped"
    rows = json.loads(report.document([failed, skipped], SimpleNamespace(kind="vm", settings=(), job=JOB)))["rows"]
    assert [row["result"] for row in rows] == ["FAIL", "skipped"]
