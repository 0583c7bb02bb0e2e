"""Show where every job stands, and what each node does for those that are not finished."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "job_look"))

from job_view import document
from job_view.figures import UNKNOWN, age, duration, is_silent, number, steps
from job_view.picture import GOING, picture, unreachable
from job_view.table import table

JOBS = ("Job", "State", ">Step", ">Loss", ">Held-out", ">Tokens/s", ">ETA", ">Restarts", "Checkpoint")
NODES = ("Job", "Node", "Does", ">Step s", ">Use", ">Memory", ">Unit restarts", "Own checkpoint")

# What is known where nobody can read the jobs' files.
UNITS = ("Job", "Node", "Unit", ">Unit restarts", "Own checkpoint")


def status(seen: Mapping[str, Any], shown: int) -> list[str]:
    """Return the lines: the unfinished jobs and the newest `shown` others, their nodes, and what needs a hand."""
    if seen["problem"]:
        known = table(UNITS, rows).splitlines() if (rows := unit_rows(seen)) else []
        return [*known, *([""] if known else []), *unreachable(seen), seen["problem"]]
    going = [job for job in seen["jobs"] if job["state"] in GOING]
    ended = [job for job in seen["jobs"] if job["state"] not in GOING]
    if not seen["jobs"]:
        return [*unreachable(seen), "No job has been started yet."]
    blocks = [table(JOBS, map(job_row, [*going, *ended[:shown]]))]
    if nodes := [node_row(job, name, node) for job in going for name, node in job["nodes"].items()]:
        blocks += ["", table(NODES, nodes)]
    notes = [note for job in [*going, *ended[:shown]] for note in notes_of(job)]
    if len(ended) > shown:
        notes.append(f"{len(ended) - shown} older ones: ansible-playbook playbooks/jobs.yml")
    notes += unreachable(seen)
    return [*"\n".join(blocks).splitlines(), *([""] if notes else []), *notes]


def job_row(job: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        job["job"],
        job["state"],
        steps(job),
        number(job.get("loss"), "{:.4f}"),
        number(job.get("heldout_last"), "{:.4f}"),
        number(job.get("tokens_per_s"), "{:,.0f}"),
        duration(job.get("eta_seconds")),
        number(job.get("restarts"), "{}"),
        checkpoint(job.get("checkpoint")),
    )


def node_row(job: Mapping[str, Any], name: str, node: Mapping[str, Any]) -> tuple[str, ...]:
    use = number(node.get("gpu_utilisation"), "GPU {:.0%}")
    return (
        job["job"],
        name,
        node["does"],
        number(node.get("step_seconds"), "{:.3f}"),
        use if use != UNKNOWN else number(node.get("cpu_utilisation"), "CPU {:.0%}"),
        number(node.get("gpu_memory_gb"), "{:.1f} GB"),
        number(node.get("unit_restarts"), "{}"),
        checkpoint(node.get("own_checkpoint")),
    )


def unit_rows(seen: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each unit that is at work or has failed."""
    units = [(job, name, unit) for name, node in seen["nodes"].items() for job, unit in node["units"].items()]
    return [
        (job, name, unit["unit"], number(unit["unit_restarts"], "{}"), checkpoint(unit.get("own_checkpoint")))
        for job, name, unit in sorted(units, key=lambda row: row[:2])
        if unit["unit"] != "inactive"
    ]


def checkpoint(found: Mapping[str, Any] | None) -> str:
    return f"step {found['step']}, {age(found['age_seconds'])}" if found else UNKNOWN


def notes_of(job: Mapping[str, Any]) -> Iterator[str]:
    """Say what the columns cannot."""
    if job.get("alarm"):
        yield f"{job['job']}: ALARM: {job['alarm']}"
    if job.get("reason") and job["state"] != "done":
        where = f" ({job['failed_node']})" if job.get("failed_node") else ""
        cause = f"; likely: {job['cause']}. Do: {job['advice']}" if job.get("cause") else ""
        yield f"{job['job']}: {job['state']}{where}: {job['reason']}{cause}"
    if is_silent(job, job.get("silent_seconds", 0)):
        silent = duration(job["silent_seconds"])
        yield f"{job['job']}: no word for {silent}: ansible-playbook playbooks/logs.yml -e job={job['job']}"


class ActionModule(ActionBase):
    """Arguments: looks (of ask_node, by name), output (a file, or nothing), shown (how many finished jobs)."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        seen = picture(self._task.args["looks"])
        for line in status(seen, int(self._task.args["shown"])):
            self._display.display(line)
        document.write(str(self._task.args["output"]), "status", seen)
        return result | {"changed": False, "failed": bool(seen["problem"]), "msg": seen["problem"] or "shown above"}
