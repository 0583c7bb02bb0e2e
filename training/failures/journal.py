"""The failure of a job on one node, from the journal of its unit: also of a program that was killed, that crashed
outside of Python, or that knows nothing of Minos.

torchrun says which process ended how. The journal keeps for each line the process that said it, so what a dead one said
last is found even where all talk at once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from training.failures.causes import cause_of
from training.failures.first import LINES, Failure

# torch/distributed/elastic/multiprocessing/api.py, at the death of a worker; the agent restarts it, or gives up.
DIED = re.compile(r"failed \(exitcode: (?P<status>-?\d+)\) local_rank: \d+ \(pid: (?P<pid>\d+)\)")
# Before that line, which comes when the last of the worker's brothers on this node has ended.
CLOSING = re.compile(r"Sending process \d+ closing signal")
# The same package, errors/__init__.py: the block that an agent ends with when it gives up.
ROOT_CAUSE = "Root Cause (first observed failure):"
RANK = re.compile(r"^ +rank +: (\d+)", re.MULTILINE)
STATUS = re.compile(r"^ +exitcode +: (-?\d+) \(pid: (\d+)\)", re.MULTILINE)
RANK_OF_LINE = re.compile(r"^\[rank(\d+)\]: ?|^rank (\d+)(?:/\d+ node=| \(\S+\): )")  # torch's own prefix; ours
OUR_LINE = re.compile(r"^rank \d+ \(\S+\): ")  # of a mistake that the user can mend (training/lifecycle.py)
TRACEBACK = re.compile(r"^(\[rank\d+\]: )?Traceback \(most recent call last\):")
# systemd, of the unit's main process (src/core/service.c).
MAIN_ENDED = re.compile(r"(Main|Control) process exited, code=(exited|killed|dumped), status=(\S+)")
SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}
OF_A_CARD = re.compile(r"CUDA|cuDNN|CUBLAS|NCCL", re.IGNORECASE)
BUSY = 76  # flock's, in the unit: another job holds this node. The next try names it (training/unit.py): that counts
NEAR = 10  # seconds: what systemd or the kernel say so close to a death belongs to it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line: when, which process said it, which start of the unit it belongs to, and whether systemd says it."""

    at: float
    pid: int
    text: str
    start: str = ""
    systemd: bool = False


def lines_of(entries: Iterable[Mapping[str, Any]]) -> list[Line]:
    """The lines of what training/journals.py has read."""
    return [
        Line(
            at=int(entry["__REALTIME_TIMESTAMP"]) / 1e6,
            pid=int(entry.get("_PID", 0)),
            text=entry["MESSAGE"],
            start=entry.get("_SYSTEMD_INVOCATION_ID") or entry.get("INVOCATION_ID") or "",
            systemd="INVOCATION_ID" in entry or entry.get("_PID") == "1",
        )
        for entry in entries
    ]


def failure_in(lines: Sequence[Line], node: str, kernel: Sequence[Line] = (), since: float = 0) -> Failure | None:
    """How the unit failed on this node, the last time that it says something of its own; None when it did not.

    `kernel` are the lines of the kernel's log; what is older than `since` was made good for. An agent that was sent
    home, because the job has failed elsewhere, hides nothing: it may be this node's workers for which it did.
    """
    found: list[Failure] = []
    for start in reversed(list(dict.fromkeys(line.start for line in lines))):
        said = [line for line in lines if line.text and line.start == start]
        own = [line for line in said if not line.systemd]
        around = [line for line in said if line.systemd] + list(kernel)
        if own:
            found += [end for end in _ends(own, around, node) if end.at >= since]
    return next((end for end in found if not end.follows), found[0] if found else None)


def _ends(own: Sequence[Line], around: Sequence[Line], node: str) -> list[Failure]:
    """The ends in one start of the unit, the telling ones first: the block in which torchrun says why it gave up, or
    the agent's own end, or that of what comes before it; then the workers that died, the last one first.
    """
    last = _given_up(own, around, node) or _agent_ended(own, around, node)
    deaths = [(line, died) for line in reversed(own) if (died := DIED.search(line.text))]
    workers = [_of_process(own, around, node, int(died["pid"]), int(died["status"]), line) for line, died in deaths]
    return [last, *workers] if last else workers


def _given_up(own: Sequence[Line], around: Sequence[Line], node: str) -> Failure | None:
    at = next((index for index in reversed(range(len(own))) if ROOT_CAUSE in own[index].text), None)
    if at is None:
        return None
    block = "\n".join(line.text for line in own[at:] if line.pid == own[at].pid)
    rank, ended = RANK.search(block), STATUS.search(block)
    if not (rank and ended):
        return None
    status, pid = int(ended[1]), int(ended[2])
    deaths = [line for line in own[:at] if (died := DIED.search(line.text)) and int(died["pid"]) == pid]
    death = [own[at], *deaths][-1]
    return _of_process(own, around, node, pid, status, death, rank=int(rank[1]))


def _of_process(
    own: Sequence[Line],
    around: Sequence[Line],
    node: str,
    pid: int,
    status: int,
    death: Line,
    rank: int | None = None,
) -> Failure:
    """The failure of a worker, of which torchrun said in the line `death` how it ended."""
    before = [line for line in own if line.at <= death.at and line is not death]
    previous = max((line.at for line in before if DIED.search(line.text)), default=0)
    noticed = min((line.at for line in before if line.at > previous and CLOSING.search(line.text)), default=death.at)
    said = [line for line in own if line.pid == pid and line.at <= death.at + NEAR]
    if rank is None:
        ranks = [match for line in said if (match := RANK_OF_LINE.match(line.text))]
        rank = int(ranks[-1][1] or ranks[-1][2]) if ranks else None
    ended = f"killed by signal {-status} ({SIGNALS.get(-status, 'another')})"
    if status >= 0:
        ended = exception_of(said) or f"ended with exit status {status}"
    elif SIGNALS.get(-status) == "SIGABRT":  # how C++ ends when nobody catches an exception; its words come before
        ended = exception_of(said) or ended
    # A card that is lost ends a program by an exception, too, which does not say so.
    beside = _beside(around, noticed, pid) if status < 0 or OF_A_CARD.search(ended) else []
    texts = [line.text for line in said][-(LINES - len(beside) - 1) :]
    # What ends by an exception says so last; who is killed may have been silent for long.
    at = said[-1].at if status >= 0 and said and noticed - said[-1].at < NEAR else noticed
    return Failure(node=node, what=ended, at=at, rank=rank, lines=(*texts, *beside, death.text))


def _agent_ended(own: Sequence[Line], around: Sequence[Line], node: str) -> Failure | None:
    ended = [(line, m[3]) for line in around if line.systemd and (m := MAIN_ENDED.search(line.text))]
    ends = [line for line, status in ended if status != "0/SUCCESS" and not status.startswith(f"{BUSY}/")]
    if not ends:
        return None
    end = ends[-1]
    said = [line for line in own if line.pid == own[-1].pid]
    by_itself = "code=exited" in end.text and exception_of(said)
    texts = [line.text for line in said][-LINES + 1 :]
    return Failure(node=node, what=by_itself or end.text.rpartition(": ")[2], at=end.at, lines=(*texts, end.text))


def _beside(around: Sequence[Line], at: float, pid: int) -> list[str]:
    """What systemd and the kernel said of this death: that memory had run out, above all.

    Systemd speaks of this unit only; the kernel of all processes, and of a GPU without naming any.
    """
    near = [line for line in around if abs(line.at - at) < NEAR and not MAIN_ENDED.search(line.text)]
    named = re.compile(rf"\b{pid}\b|NVRM: Xid")
    return [line.text for line in near if (cause_of([line.text]) if line.systemd else named.search(line.text))][-5:]


def exception_of(said: Iterable[Line]) -> str:
    """The line of the last exception, without its traceback; of one in C++, what it says of itself; '' for none."""
    what, inside = "", False
    for line in said:
        text = RANK_OF_LINE.sub("", line.text) if line.text.startswith("[rank") else line.text
        if TRACEBACK.match(line.text):
            inside = True
        elif inside and text and not text.startswith((" ", "\t")):
            what, inside = text.strip(), False
        elif text.startswith("  what():  "):
            what = text.removeprefix("  what():  ").strip()
        elif not inside and OUR_LINE.match(text):
            what = text.strip()
    return what
