"""Show what a job has said on all nodes, in one order by time, its first failure first."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "job_look"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from job_view import document
from log_lines.interest import around, first_failure, interesting
from log_lines.order import Line, merged, newest, shift

from training.failures import Failure
from training.failures.first import counts_since


def shown(line: Line, width: int) -> str:
    when = datetime.datetime.fromtimestamp(line.time).strftime("%m-%d %H:%M:%S")
    who = f"{line.who}: " if line.who in ("systemd", "kernel") else ""  # else it is the job itself
    return f"{when}  {line.node:<{width}}  {who}{line.text}"


def report(looks: Mapping[str, Mapping[str, Any]], lines: Sequence[Line], failure: Line | None, most: int) -> list[str]:
    """Return what is shown: the first failure, the lines, and the nodes that do not answer."""
    width = max(map(len, looks), default=0)
    text = []
    if failure:
        when = datetime.datetime.fromtimestamp(failure.time).strftime("%m-%d %H:%M:%S")
        text = [f"First failure: {failure.node}, {when}: {failure.text}"]
        beside = tuple(line.text for line in around(lines, failure))
        text += [f"    | {line}" for line in beside]
        if cause := Failure(node=failure.node, what=failure.text, at=failure.time, lines=beside).cause:
            text += [f"  likely: {cause.what}", f"  do: {cause.advice}"]
        text += [""]
    chosen = newest(lines, most) if most else lines
    text += [shown(line, width) for line in chosen] or ["There is nothing in the journals of this job."]
    if len(chosen) < len(lines):
        text.append(f"({len(lines) - len(chosen)} lines before these: -e lines={2 * most})")
    notes = [f"{name}: {look['problem']}" for name, look in looks.items() if look["problem"]]
    for name, look in looks.items():
        if look.get("answer") and (off := shift(look)):
            way = "behind" if off > 0 else "ahead of"
            notes.append(f"{name}: its clock is {abs(off):.0f} s {way} this machine's; its times are put right here")
    return text + ([""] if notes else []) + notes


def that_count(lines: Sequence[Line], state: Mapping[str, Any]) -> list[Line]:
    """Those behind which the job has made no step: what failed before was made good for."""
    since = counts_since(state)
    return [] if state.get("state") == "done" else [line for line in lines if line.time >= since]


class ActionModule(ActionBase):
    """Arguments: job, state (of find_job), looks (of ask_node with journal.py, by name), lines (of each node),
    everything, output.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        looks, everything = arguments["looks"], bool(arguments["everything"])
        whole = merged(looks)
        failure = first_failure(that_count(whole, arguments["state"]))
        lines = whole if everything else interesting(whole)
        if failure and failure not in lines:
            lines = sorted([*lines, failure], key=lambda line: line.time)
        for text in report(looks, lines, failure, 0 if everything else int(arguments["lines"])):
            self._display.display(text)
        table = [{"time": each.time, "node": each.node, "who": each.who, "text": each.text} for each in lines]
        first = table[lines.index(failure)] if failure else None
        off = {name: look["problem"] for name, look in looks.items() if look["problem"]}
        content = {"job": arguments["job"], "first_failure": first, "lines": table, "no_answer": off}
        document.write(str(arguments["output"]), "logs", content)
        return result | {"changed": False, "msg": "shown above"}
