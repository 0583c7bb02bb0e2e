"""What has happened between two looks at a job, from its state file alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .figures import names


def events(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each thing that has happened; `before` is empty at the first look."""
    if not before and now.get("state") == "running":
        planned = list(now.get("planned_nodes") or [])
        if away := [name for name in planned if name not in (now.get("nodes") or [])]:
            yield f"{len(planned) - len(away)} of {len(planned)} nodes train, without {names(away)}"
    if before and now:
        if now.get("state") == "starting" and before.get("run_id") != now.get("run_id"):
            yield "starting"
        if now.get("state") == "running":
            yield from members(before, now)
            yield from restarts(before, now)
    old, new = before.get("alarm") or "", now.get("alarm") or ""
    if new != old:
        yield f"ALARM: {new}" if new else "the alarm is over"


def members(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Say which nodes are lost, and which are back."""
    old, new = list(before.get("nodes") or []), list(now.get("nodes") or [])
    if not old or not new:
        return
    planned = list(now.get("planned_nodes") or before.get("planned_nodes") or [])
    of = f"{len(new)} of {max(len(planned), len(new), len(old))}"
    if lost := [name for name in old if name not in new]:
        yield f"{names(lost)} lost, going on with {of}"
    if back := [name for name in new if name not in old]:
        yield f"{names(back)} {'is' if len(back) == 1 else 'are'} back, going on with {of}"


def restarts(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Say that the workers were started again, and where they have gone on."""
    at = now.get("resumed_at", now.get("step", 0))
    if "starts" in now:
        again = now["starts"] > before.get("starts", now["starts"]) and now.get("run_id") == before.get("run_id")
    else:
        again = before.get("state") == "running" and now.get("step", 0) < before.get("step", 0)
    if again:
        yield "restarted" if now.get("script") else f"restarted at step {at}"
    elif before.get("state") == "starting" and at:
        yield f"goes on at step {at}"
