"""Which failure was the first of a job, and the report that a person reads.

Each node knows its own: a worker that died (journal.py), or one that wrote its exception into the job's state. Most
nodes of a failed job only lost their peers; the first failure is the earliest of those that say something of their own.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Iterable, Mapping
from typing import Any

from training.failures.causes import Cause, cause_of

LINES = 20  # kept around a failure
CLOCKS = 5  # seconds that the clocks of two nodes, or two records of one event, may be apart
LATE = 30  # seconds that a step may come later into the job's state than it was made
LASTED = 300  # seconds: a script tells no steps, and a start of its workers that lasted so long counts as one
XID = "NVRM: Xid"  # how NVIDIA's driver begins its errors in the kernel's log
FIELDS = ("reason", "failed_rank", "failed_node", "failed_at", "last_lines", "cause", "advice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """How one process ended; `at` in seconds since 1970, `what` the exception's line or the signal's name."""

    node: str
    what: str
    at: float
    rank: int | None = None
    lines: tuple[str, ...] = ()

    @property
    def cause(self) -> Cause | None:
        """By the exception itself; where that tells too little, or nothing, by the lines around it."""
        by_itself = cause_of([self.what])
        return by_itself if by_itself and not by_itself.vague else cause_of(self.lines) or by_itself

    @property
    def follows(self) -> bool:
        """Whether it came of another failure, as far as one can see."""
        return bool(self.cause and self.cause.follows)

    def to_record(self, run_id: str) -> dict[str, Any]:
        """What one node tells the others."""
        return dataclasses.asdict(self) | {"run_id": run_id}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Failure:
        fields = {field.name: record[field.name] for field in dataclasses.fields(cls)}
        return cls(**fields | {"lines": tuple(record["lines"])})

    def to_state(self) -> dict[str, Any]:
        """The fields of the job's state file."""
        cause = self.cause
        values = (self.what, self.rank, self.node, moment(self.at), list(self.lines))
        known = dict(zip(FIELDS, (*values, cause and cause.what, cause and cause.advice), strict=True))
        return {key: value for key, value in known.items() if value not in (None, "", [])}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Failure | None:
        """What a job's state says of its failure; None when it has not failed, or does not say."""
        if state.get("state") != "failed" or not state.get("reason"):
            return None
        return cls(
            node=str(state.get("failed_node", "")),
            what=str(state["reason"]),
            at=seconds(state.get("failed_at") or state.get("updated")),
            rank=state.get("failed_rank"),
            lines=tuple(state.get("last_lines", ())),
        )


def counts_since(state: Mapping[str, Any]) -> float:
    """The time, in seconds since 1970, before which nothing counts that a node has found: the job has made its last
    step behind it, or, as a script, has lasted. And before it was started there was another start, which ended for its
    own reasons.
    """
    made_good = [seconds(state.get("stepped")) - LATE, seconds(state.get("started")) - CLOCKS]
    made_good.append(seconds(state.get("lasting_began")) - CLOCKS)
    if (began := seconds(state.get("attempt_began"))) and _end(state) >= began + LASTED:
        made_good.append(began - CLOCKS)
    return max(made_good)


def _end(state: Mapping[str, Any]) -> float:
    """When the job failed, or now."""
    return seconds(state.get("failed_at")) or time.time()


def first_failure(state: Mapping[str, Any], found: Iterable[Failure]) -> Failure | None:
    """The first failure of the job, from its state and from what its nodes have found."""
    every = [failure for failure in found if failure.at >= counts_since(state)]
    if written := Failure.from_state(state):
        # A worker writes its exception before torchrun and the journal see it go: one event, and it knows more.
        same = [failure for failure in every if not failure.follows and same_event(failure, written)]
        every = [failure for failure in every if failure not in same]
        every.append(with_kernels_word(written, same))
    return min(every, key=lambda failure: (failure.follows, failure.at), default=None)


def same_event(found: Failure, written: Failure) -> bool:
    same_place = found.node == written.node and written.rank in (None, found.rank)
    return same_place and not written.follows and found.at > written.at - CLOCKS


def with_kernels_word(written: Failure, same: Iterable[Failure]) -> Failure:
    """What a worker has written, with what its node's kernel said of the card meanwhile: no exception says that."""
    said = [line for failure in same for line in failure.lines if XID in line and line not in written.lines]
    return dataclasses.replace(written, lines=(*written.lines, *said)) if said else written


def with_cause(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a job; where it has just failed, with the time and the likely cause."""
    written = Failure.from_state(state)
    if not written or state.get("failed_at"):
        return state
    return state | dataclasses.replace(written, at=time.time()).to_state()


def is_settled(state: Mapping[str, Any]) -> bool:
    """Whether the state of a failed job names a failure of its own; else a node may still find the first one."""
    written = Failure.from_state(state)
    return bool(written and written.node and not written.follows)


def told(state: Mapping[str, Any]) -> list[str]:
    """The report of a failed job, in lines; [] when it has not failed."""
    written = Failure.from_state(state)
    if not written:
        return []
    rank = f", rank {written.rank}" if written.rank is not None else ""
    rows = [("reason", written.what)]
    if written.node:
        rows.append(
            ("where", f"{written.node}{rank}" + (f", {moment(written.at, ' ', 'seconds')}" if written.at else ""))
        )
    if state.get("cause"):
        rows += [("cause", f"likely: {state['cause']}"), ("do", state["advice"])]
    lines = [f"  {name:<12} {text}" for name, text in rows]
    return lines + [f"    | {line}" for line in written.lines]


def moment(at: float, between: str = "T", precision: str = "milliseconds") -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(between, precision)


def seconds(text: Any) -> float:
    """Seconds since 1970 of a time in ISO's form, 0 where there is none."""
    try:
        return datetime.datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
