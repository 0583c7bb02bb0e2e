"""Durations, sizes and the line of a job's progress, as people read them. What is not known is a dash."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN = "-"
SILENT = 60  # seconds without a word of a running job that are worth saying
REPORTS = 10  # steps from one word to the next where the state does not say
NAMES = 8  # nodes that a line names; the document of a verb has them all
UNITS = ("B", "kB", "MB", "GB", "TB")


def duration(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else str(datetime.timedelta(seconds=max(0, round(seconds))))


def age(seconds: float | None) -> str:
    """Return how long ago something was, in the largest unit that says enough."""
    if seconds is None:
        return UNKNOWN
    for unit, length in (("days", 172800), ("h", 7200), ("min", 120)):
        if seconds >= length:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


def moment(text: Any) -> datetime.datetime | None:
    """Return a time of a state file; None for one that somebody else wrote."""
    try:
        when = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return when if when.tzinfo else None


def at(when: datetime.datetime | None) -> str:
    """Return a time as this machine's clock has it."""
    return when.astimezone().strftime("%Y-%m-%d %H:%M") if when else UNKNOWN


def number(value: Any, how: str) -> str:
    return how.format(value) if isinstance(value, int | float) and not isinstance(value, bool) else UNKNOWN


def size(count: float) -> str:
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {UNITS[unit]}" if unit < 2 else f"{count:.1f} {UNITS[unit]}"


def seconds_left(state: Mapping[str, Any]) -> float | None:
    """Return the time to the end, from the mean step so far."""
    mean, steps = state.get("mean_step_seconds"), state.get("steps")
    return (steps - state.get("step", 0)) * mean if mean and isinstance(steps, int) else None


def eta(state: Mapping[str, Any]) -> str:
    left = seconds_left(state)
    return "?" if left is None else duration(left)


def steps(state: Mapping[str, Any]) -> str:
    """Return how far a job is, for a table; a script of the user's own tells no steps."""
    return UNKNOWN if state.get("script") else f"{state.get('step', 0)}/{state.get('steps', '?')}"


def where(state: Mapping[str, Any]) -> str:
    """Return the same for a sentence, behind the state."""
    script = state.get("script")
    return f"({script})" if script else f"at step {state.get('step', 0)} of {state.get('steps', '?')}"


def is_silent(state: Mapping[str, Any], seconds: float) -> bool:
    """Whether a running job should have said something within the last `seconds`, when it last did; a script of the
    user's own never does.
    """
    steps = max(5, 2 * state.get("log_every", REPORTS))
    return not state.get("script") and seconds > max(SILENT, steps * (state.get("mean_step_seconds") or 0))


def names(nodes: Sequence[str]) -> str:
    """Return them as one reads them in a sentence; of many the first ones."""
    more = len(nodes) - NAMES
    return ", ".join(nodes) if more <= 1 else f"{', '.join(nodes[:NAMES])} and {more} more"


def script_line(state: Mapping[str, Any]) -> str:
    """Return one line on a script of the user's own."""
    nodes, began = names(state.get("nodes") or []), moment(state.get("attempt_began"))
    since = f" for {duration((datetime.datetime.now(datetime.UTC) - began).total_seconds())}" if began else ""
    restarts = f", started {state['starts']} times" if state.get("starts", 1) > 1 else ""
    return f"{state['script']} runs on {nodes}{since}{restarts}"


def progress_line(state: Mapping[str, Any]) -> str:
    """Return one line: step, loss, held-out loss where known, tokens/s, ETA, and what needs somebody's hand."""
    if state.get("script"):
        return script_line(state)
    parts = [f"step {state.get('step', 0)}/{state.get('steps', '?')}"]
    for key, text in (
        ("loss", "loss {:.4f}"),
        ("heldout_last", "held-out {:.4f}"),
        ("tokens_per_s", "{:,.0f} tokens/s"),
    ):
        if state.get(key) is not None:
            parts.append(text.format(state[key]))
    alarm = [f"ALARM: {state['alarm']}"] if state.get("alarm") else []
    return "  ".join([*parts, f"ETA {eta(state)}", *alarm])
