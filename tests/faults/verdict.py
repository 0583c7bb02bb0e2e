"""What a case's records say: how it ended, whether samples or bits were lost, and how long it stood still."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from training.ledger import LedgerError, verify

HELDOUT_WITHIN = 1e-3
RANKS = 3
"""One on each node."""
START = re.compile(r"rank 0/(\d+) node=.* pid=(\d+)")
STEP = re.compile(r"step (\d+)/\d+ epoch ")


CLOCK = (
    "python3 -c 'import time; print(time.time() - time.monotonic(), end=\" \")';"
    " tr -d - < /proc/sys/kernel/random/boot_id"
)
"""What the steady clock of a node lacks of the time of day now, and the name of its present boot."""


@dataclasses.dataclass(frozen=True, order=True)
class Line:
    """A line of a node's journal."""

    time: float
    node: str
    text: str

    @staticmethod
    def read(node: str, journal: str) -> Iterator[Line]:
        """From what CLOCK and then `journalctl --output=json` print there.

        A line of the node's present boot gets its time from the clock that nobody sets: the other may have been an hour
        behind when it was written.
        """
        clock, *rows = journal.splitlines() or ["0 none"]
        offset, boot = clock.split()
        for row in rows:
            entry = json.loads(row)
            if isinstance(entry.get("MESSAGE"), str):  # else bytes that are no text
                steady = int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6 + float(offset)
                told = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
                yield Line(steady if entry["_BOOT_ID"] == boot else told, node, entry["MESSAGE"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a case has left."""

    began: float
    hit: float
    """When the fault began to happen, and when it had."""
    lines: Sequence[Line]
    state: dict
    ledger: str
    weights: str
    """SHA-256 of the exported parameters."""
    boot: float | None
    """Seconds until the nodes that were booted let somebody in again."""
    problems: Sequence[str]
    notes: Sequence[str]
    job: Mapping[str, object]
    """Its config."""
    workers: Collection[tuple[str, int]] = ()
    """Node and process of those that were there when the fault came, where they had not said so yet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table; `problems` is what did not go as promised, `skipped` why it was not tried."""

    number: int
    fault: str
    moment: str
    ended: str = ""
    ledger: str = ""
    ranks: str = ""
    weights: str = ""
    heldout_difference: float | None = None
    seconds: float | None = None
    goal: float | None = None
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    skipped: str = ""

    @property
    def result(self) -> str:
        return "skipped" if self.skipped else "FAIL" if self.problems else "pass"


def sizes(lines: Sequence[Line]) -> list[int]:
    """The numbers of ranks that made steps, one after the other."""
    found, size = [], 0
    for line in lines:
        if start := START.match(line.text):
            size = int(start[1])
        elif STEP.match(line.text) and found[-1:] != [size]:
            found.append(size)
    return found


def restarted(facts: Facts) -> float | None:
    """When the first worker of rank 0 began that was started since the fault; None where none was.

    A worker says so when its peers are there: one that the fault found before that may say it afterwards.
    """
    for line in facts.lines:
        start = START.match(line.text) if line.time > facts.began else None
        # A machine that has booted gives its processes the same numbers again.
        if start and (facts.boot is not None or (line.node, int(start[2])) not in facts.workers):
            return line.time
    return None


def next_step(facts: Facts) -> float | None:
    """Seconds from the fault to the next step.

    Where the workers were started again that is the first step behind it: one that was under way may still have ended.
    Where they were not, it is the first step since the fault was complete.
    """
    restart = restarted(facts)
    since = facts.hit if restart is None else restart
    step = next((line.time for line in facts.lines if line.time > since and STEP.match(line.text)), None)
    return None if step is None else step - (facts.hit if restart is None else facts.began)


def goal(loss: str, moment: str, boot: float | None, job: Mapping[str, object]) -> float | None:
    """The seconds that issue 6 allows. Before the first step the ranks wait longer for one that hangs (timeout_start),
    not for a machine that is gone: its agent is missed, or its kernel.
    """
    timeout = job["timeout_start" if moment == "before" else "timeout_step"]
    limits = {
        "worker": 10, "loud": job["node_grace"] + 15, "hangs": timeout + job["node_grace"] + 30,
        "silent": job["timeout_step"] + job["node_grace"] + 30, "boot": boot and boot + 30,
    }  # fmt: skip
    return limits.get(loss)


def ledger_problem(text: str, job: Mapping[str, object]) -> str:
    """Why the ledger does not prove that every sample was used once; nothing where it does."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ledger.jsonl"
        file.write_text(text, encoding="utf-8")
        try:
            said = verify(file)
        except (LedgerError, KeyError) as error:
            return str(error).replace(f"{file}: ", "")
    wanted = f"{job['steps'] * job['global_batch']} samples in {job['steps']} steps"
    return "" if said.startswith(wanted) else f"{said}; wanted {wanted}"


def judge(
    case: Row, loss: str, facts: Facts, reference: Facts, *, timed: bool = True, slack: float = 1,
    restarts: bool | None = None, left: int = 0,
) -> Row:  # fmt: skip
    """`case` with what is known of it, compared with the undisturbed run; without `timed` no time counts.

    `restarts`: whether the workers must be started again, or must not, by this fault; None: nothing is known of it.
    `left`: so many ranks must have gone on, where it takes some away. A fault that had no effect proves nothing.
    """
    problems = [problem for problem in facts.problems if problem]
    state, steps = facts.state, facts.job["steps"]
    ended = f"{state.get('state', 'did not end')} {state.get('step', 0)}/{steps}"
    if ended != f"done {steps}/{steps}":
        problems.append(f"{ended}: {state.get('reason', 'no reason recorded')}")
    if lost := ledger_problem(facts.ledger, facts.job):
        problems.append(f"ledger: {lost}")
    ranks = sizes(facts.lines)
    if not ranks or 0 in ranks or sizes(reference.lines) != [RANKS]:
        problems.append(f"steps were made by {ranks} ranks, undisturbed by {sizes(reference.lines)}, which is {RANKS}")
    if left and min(ranks, default=0) != left:
        problems.append(f"steps were made by {ranks} ranks, and {left} were to be left")
    started = restarted(facts) is not None
    if restarts is not None and facts.hit and started != restarts:
        problems.append("no worker was started again" if restarts else "the workers were started again")
    equal = bool(facts.weights) and facts.weights == reference.weights
    if not facts.weights:
        problems.append("no parameters were exported")
    elif set(ranks) == {RANKS} and not equal:
        problems.append("the parameters differ from the undisturbed run's")
    difference = None
    if "heldout_last" in state and "heldout_last" in reference.state:
        difference = state["heldout_last"] - reference.state["heldout_last"]
    if difference is None or not abs(difference) <= HELDOUT_WITHIN:
        problems.append(f"the held-out loss is {difference} off" if difference is not None else "no held-out loss")
    seconds = next_step(facts) if timed and facts.hit else None
    limit = goal(loss, case.moment, facts.boot, facts.job)
    if timed and facts.hit and seconds is None:
        problems.append("no step after the fault")
    if seconds is not None and limit is not None and seconds > limit * slack:
        problems.append(f"{seconds:.0f} s to the next step, {limit:.0f} are allowed")
    return dataclasses.replace(
        case, ended=ended, ledger="lost" if lost else "whole", ranks=">".join(map(str, ranks)),
        weights="equal" if equal else "differ" if facts.weights else "none", heldout_difference=difference,
        seconds=seconds, goal=limit, problems=problems, notes=list(facts.notes),
    )  # fmt: skip
