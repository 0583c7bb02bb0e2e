"""Find the job that is meant: the one that is named, or else the only one in some state, or the newest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from job_view.figures import moment
from job_view.picture import active_nodes, find, has_workers, head_problem, only_active, picture


class ActionModule(ActionBase):
    """Arguments: looks (of ask_node with look.py, by name), job (a name or nothing), states (of which the only one is
    meant where none is named; without them the newest is), unseen_ok (it may be one whose files nobody can read now),
    head (its name, where it will be asked for what is on the share).

    Returns `job` (as in picture.py), `active` (the nodes whose unit is at work), `workers` (whether one of them has
    workers, and not just an agent that waits for the others), `started` (Unix time, 0: not known),
    `off` (node -> problem, of those that do not answer) and `head_problem` (why the head cannot be asked, or nothing).
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        looks, name, states = arguments["looks"], str(arguments["job"]), arguments.get("states")
        seen = picture(looks)
        if not name and not states and seen["jobs"]:
            name = max(seen["jobs"], key=lambda job: job.get("started", ""))["job"]
        if not name and seen["problem"] and arguments.get("unseen_ok"):
            name = only_active(looks)
        try:
            job = find(seen, name, tuple(states or ()))
        except ValueError as error:
            if not (name and seen["problem"] and arguments.get("unseen_ok")):
                raise AnsibleActionFail(str(error)) from None
            job = {"job": name, "state": "unknown", "nodes": {}, "planned_nodes": []}
        started = moment(job.get("started"))
        off = {node: look["problem"] for node, look in looks.items() if look["problem"]}
        result.update(changed=False, job=job, active=active_nodes(looks, job["job"]), off=off)
        result["workers"] = any(has_workers(looks[node], job["job"]) for node in result["active"])
        result["head_problem"] = head_problem(looks, arguments["head"]) if arguments.get("head") else ""
        return result | {"started": started.timestamp() if started else 0.0}
