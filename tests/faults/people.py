"""Faults of people: who types train.yml, stops it, and types it again."""

from __future__ import annotations

import re
import time

from tests.faults.case import Case, Struck
from tests.faults.cluster import Training

INTERRUPTS = 10


def train_interrupted(case: Case) -> Struck:
    """Ctrl-C at ten moments, spread over the tasks of train.yml, each in a run of its own; then one that goes on."""
    hit = 0
    for number in range(1, INTERRUPTS + 1):
        run, wanted = case.train(), number * case.cluster.tasks // INTERRUPTS
        while not run.ended() and run.tasks() < wanted:
            time.sleep(0.05)
        hit += not run.ended()
        run.interrupt()
        case.expect(run.wait(60) is not None, "it did not end after Ctrl-C")
    yield
    last = case.train(follow=True)
    status = last.wait()
    case.notes.append(f"{hit} of {INTERRUPTS} runs were interrupted")
    case.expect(hit >= INTERRUPTS - 2, "too few: the others had ended before")
    case.expect(status == 0, f"the last train.yml ended with {status}: {last.failed()}")


def started_twice(case: Case) -> Struck:
    """The same job by two train.yml: both follow one and the same run in the end."""
    first, second = _two(case, case.job)
    yield
    runs = {"first": first, "second": second}
    statuses = {name: run.wait() for name, run in runs.items()}
    unlimited(case)
    for (name, run), status in zip(runs.items(), statuses.values(), strict=True):
        if status != 0:
            case.notes.append(f"the {name} train.yml ended with {status}: {run.failed()}")
    case.expect(0 in statuses.values(), "both train.yml failed")


def two_jobs(case: Case) -> Struck:
    """Another job on the same nodes: it is refused, with the name of the first."""
    first, second = _two(case, case.other)
    yield
    statuses = first.wait(), second.wait()
    unlimited(case)
    if case.moment == "start" and statuses[0] != 0 and statuses[1] == 0:
        case.job, case.other, first, second = case.other, case.job, second, first
        statuses = statuses[::-1]
    said = second.failed()
    case.notes.append(f"the second was told: {said}")
    case.expect(statuses[0] == 0, f"the first train.yml ended with {statuses[0]}: {first.failed()}")
    case.expect(statuses[1] != 0, "the second train.yml was not refused")
    case.expect(
        re.search(rf"(?<![\w.-]){re.escape(case.job)}(?![\w.-])", said), f"the refusal does not name job {case.job}"
    )
    case.expect(not case.cluster.busy(case.other), f"job {case.other} runs beside it")


def _two(case: Case, job: str) -> tuple[Training, Training]:
    """Both train.yml; a slow link keeps the first one's job at work until the second has come to it."""
    case.cluster.lab.command("bandwidth", "node3", "3mbit")
    case.later(lambda: unlimited(case))
    return case.train() if case.moment == "start" else case.trainings[0], case.train(job)


def unlimited(case: Case) -> None:
    case.cluster.lab.command("bandwidth", "node3", "none")
