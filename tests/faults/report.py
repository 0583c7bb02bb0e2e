"""The table of the matrix, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence

from tests.faults.cluster import Cluster
from tests.faults.verdict import Row

HEADER = ("#", "FAULT", "MOMENT", "ENDED", "LEDGER", "RANKS", "WEIGHTS", "HELD-OUT", "NEXT STEP", "GOAL", "RESULT")


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table."""
    number = str(row.number or "")
    if row.skipped:
        return (number, row.fault, row.moment, *["-"] * 7, row.result)
    ranks, off = row.ranks or "-", "-" if row.heldout_difference is None else f"{row.heldout_difference:+.0e}"
    seconds, goal = (f"{value:.1f} s" if value is not None else "-" for value in (row.seconds, row.goal))
    return (
        number, row.fault, row.moment, row.ended, row.ledger, ranks, row.weights, off, seconds, goal, row.result,
    )  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """All lines, then what is to be said about some of them, then the sum."""
    lines = [HEADER, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) + 2 for column in range(len(HEADER))]
    text = ["".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    for row in rows:
        said = [*row.problems, *([row.skipped] if row.skipped else [])]
        text += [f"{row.fault} {row.moment}: {row.result}: {problem}" for problem in said]
    counts = {result: sum(row.result == result for row in rows) for result in ("pass", "FAIL", "skipped")}
    return "\n".join([*text, ", ".join(f"{count} {result}" for result, count in counts.items())])


def document(rows: Sequence[Row], cluster: Cluster) -> str:
    """The same and the notes, for programs."""
    facts = [dataclasses.asdict(row) | {"result": row.result} for row in rows]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    head = {"time": now, "kind": cluster.kind, "settings": cluster.settings, "job": cluster.job}
    return json.dumps(head | {"rows": facts}, indent=2) + "\n"
