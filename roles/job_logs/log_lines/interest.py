"""Which lines say something: starts, ends, failures and alarms; not the progress, which is shown elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .order import Line

# Progress, and what libraries say at every start.
DULL = re.compile(
    r"^step \d+/\d+ epoch |^W\d{4} .*OMP_NUM_THREADS|^\*+$|Setting OMP_NUM_THREADS|^held-out loss .* at step"
    r"|Consumed .* CPU time|Warning:|^\s*warnings\.warn"
)
WORTH = re.compile(
    r"^rank \d+/\d+ |resumed from|no valid checkpoint|skipped|^alarm: |answers again|^(done|stopped|leaving) at step"
    r"|has room again|before the first step"
    r"|^stopped: |nothing to (do|run)|left at step|^epoch \d+|total .* s in \d+ steps|waiting for|has arrived in"
    r"|Start(ed|ing) |Stopp(ed|ing) |Main process exited|Failed with result|Scheduled restart|Deactivated|gave up"
    r"|rendezvous|generation|restart|Signal|SIGTERM|SIGKILL|exitcode|another rank is gone"
)
# Capitals count: val_error is a figure, and ValueError none.
FAILURE = re.compile(
    r"\b\w*[A-Za-z](Error|Exception|Interrupt)\b|^Traceback|^rank \d+ \(\S+\): |not finite"
    r"|(?i:out of memory|no space left)|\b(Fatal|FATAL|fatal)\b|\bFAILED\b|Failed with result|exitcode\s*:"
    r"|NVRM: Xid|oom-kill|Killed process|Segmentation fault|status=\d+/(SEGV|KILL|ABRT)"
    r"|\[E\d{4}|^E\d{4} |[Dd]o(es)? not run the same|cannot be (used|recorded)"
)
# Said by those that only notice that another one is gone, and by what ends them then.
ECHO = re.compile(
    r"another rank is gone|connection (closed|reset|refused)|broken pipe|gloo/|SIGTERM|signal 15|ChildFailedError"
    r"|SignalException|DistNetworkError|DistBackendError|DistStoreError|RendezvousC|Failed with result"
    r"|status=\d+/(FAILURE|TERM)|Root Cause|=+$|-+$|^Failures?:|failed \(exitcode: (1|-15)\)|<NO_OTHER_FAILURES>"
    r"|\S FAILED$",
    re.IGNORECASE,
)
INSIDE = re.compile(r"\s+\S|Traceback")  # of a traceback, which ends with the line that names it
OF_RANK = re.compile(r"^\[rank\d+\]:\s")
AROUND = 20  # lines of the node that failed first


def is_failure(line: Line) -> bool:
    """An alarm is none: nothing ends for it."""
    failed = FAILURE.search(line.text) and not line.text.startswith("alarm: ")
    return bool(failed) and not DULL.search(line.text)


def is_inside(line: Line) -> bool:
    return bool(INSIDE.match(OF_RANK.sub("", line.text)))


def interesting(lines: Sequence[Line]) -> list[Line]:
    """Return the lines that say something; of a traceback what it is about, not the way there."""
    found = (line for line in lines if is_failure(line) or (WORTH.search(line.text) and not DULL.search(line.text)))
    return [line for line in found if not is_inside(line) or "exitcode" in line.text]


def first_failure(lines: Sequence[Line]) -> Line | None:
    """Return the earliest line that names a failure of its own, or else the earliest that speaks of any."""
    failures = [line for line in lines if is_failure(line) and not is_inside(line)]
    own = (line for line in failures if not ECHO.search(line.text))
    return next(own, failures[0] if failures else None)


def around(lines: Sequence[Line], failure: Line) -> list[Line]:
    """Return what the node of the first failure said up to it, and the line after."""
    same = [line for line in lines if line.node == failure.node and not DULL.search(line.text)]
    at = same.index(failure)
    return same[max(0, at + 2 - AROUND) : at + 2]
