"""Runs the chosen cases one after the other on one cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from tests.faults import data
from tests.faults.case import Case, Fault, Missed, Struck
from tests.faults.cluster import Cluster
from tests.faults.verdict import Facts, Row, judge


def run(cluster: Cluster, cases: Sequence[tuple[Fault, Sequence[str]]], slack: float = 1) -> Iterator[Row]:
    """The rows of each case as soon as they are known; first that of the undisturbed run, which the others must equal.

    A case is a job and the moments at which its fault hits it, each of which is a row.
    `slack`: how many times the goal a case may take to its next step, on a machine that has other work.
    """
    data.make()
    reference = undisturbed(cluster)
    row = judge(Row(number=0, fault="undisturbed", moment=""), "", reference, reference, timed=False)
    yield row
    if row.problems:  # nothing to compare with
        return
    for fault, moments in cases:
        reason = skipped(cluster, fault)
        rows = [Row(number=fault.number, fault=fault.name, moment=moment, skipped=reason) for moment in moments]
        if reason:
            yield from rows
            continue
        began = time.monotonic()
        case = Case(cluster, fault, moments)
        found = case.run()
        case.notes.append(f"the whole case took {time.monotonic() - began:.0f} s")
        for row, facts in zip(rows, found, strict=True):
            # Workers of an earlier start may print their first line after a fault that comes before the first step.
            seen = ("before", "mid", "save") if fault.restarts else ("mid", "save")
            known = fault.restarts if row.moment in seen else None
            timed = fault.timed and row.moment != "start"
            yield judge(row, fault.loss, facts, reference, timed=timed, slack=slack, restarts=known, left=fault.left)


def undisturbed(cluster: Cluster) -> Facts:
    """The same job without a fault."""

    def nothing(case: Case) -> Struck:
        training = case.train(follow=True)
        if training.wait():
            raise Missed(f"train.yml has failed: {training.failed()}")
        cluster.tasks = training.tasks()
        yield

    return Case(cluster, Fault(number=0, name="undisturbed", what="nothing", strike=nothing), ["start"]).run()[0]


def skipped(cluster: Cluster, fault: Fault) -> str:
    """Why this cluster cannot have this fault; nothing where it can."""
    if fault.kind and fault.kind != cluster.kind:
        return f"{fault.because}: --kind {fault.kind}"
    if fault.small_share and not cluster.share_is_small:
        return "the share of this lab cannot be filled: only that of a lab of the matrix's own can"
    return ""
