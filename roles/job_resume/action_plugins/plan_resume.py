"""Decide whether a job can be started again with what is on its nodes, and on which of them; no node is contacted."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "job_look"))

from job_view import figures
from job_view.picture import ACTIVE, GOING, head_problem

TRAIN = "start it with train.yml"


def fewest(settings: Mapping[str, Any], nodes: list[str]) -> int:
    """Return with how many nodes the job may begin: MIN of the MIN:MAX that torchrun is given."""
    said = str(settings.get("nnodes", "")).partition(":")[0]
    return int(said) if said.isdecimal() else len(nodes)


def plan(
    job: Mapping[str, Any], looks: Mapping[str, Mapping[str, Any]], head: str, store: str, active: list[str]
) -> tuple[list[str], int]:
    """Return the nodes to start, and how many suffice. ValueError: one line that says why not, and what to do."""
    name, state = job["job"], job["state"]
    where = f"job {name} is {state} {figures.where(job)}"
    if state == "done":
        raise ValueError(f"{where}: there is nothing to go on with; train.yml with -e job=ANOTHERNAME starts another")
    if state not in ("stopped", "failed", *GOING):
        raise ValueError(f"{where}: {job.get('reason', 'its state is not known')}")
    if active:
        what = "it is at work" if state in GOING else "its last start is not over"
        raise ValueError(
            f"{where}, {what} on {', '.join(active)}: playbooks/watch.yml shows it, playbooks/stop.yml ends it"
        )
    if problem := head_problem(looks, head):
        raise ValueError(f"{where}, and {head}, the head: {problem}")
    planned = job["planned_nodes"] or [node for node, look in looks.items() if name in told(look, "settings")]
    if strangers := [node for node in planned if node not in looks]:
        raise ValueError(f"{where}; {', '.join(strangers)} is not in the inventory any more: {TRAIN}")
    there = [node for node in planned if not looks[node]["problem"]]
    for node in there:
        settings = told(looks[node], "settings")
        if not settings.get(name, {}).get("ready"):
            raise ValueError(f"{where}, and {node} lacks its settings, code or config: {TRAIN}, which puts them there")
        if (kept := settings[name].get("store", store)) != store:
            raise ValueError(
                f"{where}; {node} would look for the store at {kept}, but it is at {store} now: {TRAIN}, which says so"
            )
        for other, unit in told(looks[node], "units").items():
            if unit["active"] in ACTIVE:
                raise ValueError(f"{where}, and {node} trains job {other}: playbooks/stop.yml -e job={other} ends that")
    least = fewest(told(looks[there[0]], "settings")[name], planned) if there else len(planned)
    if len(there) < max(1, least):
        off = "; ".join(f"{node}: {looks[node]['problem']}" for node in planned if node not in there)
        raise ValueError(f"{where}, and needs {least} of {', '.join(planned)}. {off or 'It was on no node'}")
    return there, max(1, least)


def told(look: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    return (look.get("answer") or {}).get(part, {})


class ActionModule(ActionBase):
    """Arguments: found (of find_job), looks (of ask_node with look.py, by name), head, store. Returns nodes, away,
    nnodes_min and run_id.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        found, looks = self._task.args["found"], self._task.args["looks"]
        job = found["job"]
        try:
            nodes, least = plan(job, looks, self._task.args["head"], self._task.args["store"], found["active"])
        except ValueError as error:
            raise AnsibleActionFail(str(error)) from None
        run_id = f"{job['job']}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        away = [node for node in job["planned_nodes"] if node not in nodes]
        return result | {"changed": False, "nodes": nodes, "away": away, "run_id": run_id, "nnodes_min": least}
