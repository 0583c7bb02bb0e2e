"""Show all jobs that there were, the newest first."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "job_look"))

from job_view import document
from job_view.figures import UNKNOWN, at, duration, moment, names, number, steps
from job_view.picture import GOING, picture, unreachable
from job_view.table import table

COLUMNS = ("Job", "State", "Started", "Ended", ">Took", ">Step", ">Loss", ">Held-out", "Nodes")


def history(seen: Mapping[str, Any]) -> list[str]:
    """Return the lines."""
    if seen["problem"]:
        return [*unreachable(seen), seen["problem"]]
    if not seen["jobs"]:
        return ["No job has been started yet."]
    return [*table(COLUMNS, map(row, seen["jobs"])).splitlines(), *unreachable(seen)]


def row(job: Mapping[str, Any]) -> tuple[str, ...]:
    before, now = (number(job.get(key), "{:.4f}") for key in ("heldout_first", "heldout_last"))
    return (
        job["job"],
        job["state"],
        at(moment(job.get("started"))),
        UNKNOWN if job["state"] in GOING else at(moment(job.get("updated"))),
        duration(job.get("seconds")),
        steps(job),
        number(job.get("loss"), "{:.4f}"),
        UNKNOWN if now == UNKNOWN else f"{before} to {now}",
        names(job["planned_nodes"]) or UNKNOWN,
    )


class ActionModule(ActionBase):
    """Arguments: looks (of ask_node, by name), output (a file, or nothing)."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        seen = picture(self._task.args["looks"])
        for line in history(seen):
            self._display.display(line)
        document.write(str(self._task.args["output"]), "jobs", seen)
        return result | {"changed": False, "failed": bool(seen["problem"]), "msg": seen["problem"] or "shown above"}
