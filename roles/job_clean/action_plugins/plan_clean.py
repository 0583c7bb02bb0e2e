"""Decide which jobs may be cleaned, or refuse; no node is contacted."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "job_look"))

from job_view.picture import GOING, active_nodes, head_problem, picture

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


def plan(
    looks: Mapping[str, Mapping[str, Any]], job: str, keep: str, everything: bool, head: str
) -> tuple[list[str], list[str], str]:
    """Return the jobs to clean, why others are left alone, and the run id of the last start of `job`.

    ValueError: one line that says what to write.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,5}", keep):
        raise ValueError(f"keep={keep}: write how many valid checkpoints of a job shall stay, 1 or more")
    if everything and not job:
        raise ValueError("everything=true: write -e job=NAME, the one job that shall go")
    if job and not NAME.fullmatch(job):
        raise ValueError(f"job={job}: no job can have this name")
    if problem := head_problem(looks, head):
        raise ValueError(f"{head}, the head: {problem}. Nothing was removed")
    seen = picture(looks)
    if seen["problem"]:
        raise ValueError(f"{seen['problem']}. Nothing was removed")
    if unread := [each for each in seen["jobs"] if each.get("unread") and job in ("", each["job"])]:
        raise ValueError(f"{unread[0]['job']}: {unread[0]['reason']}. Nothing was removed")
    jobs = {each["job"]: each["state"] for each in seen["jobs"]}
    starts = {each["job"]: each.get("run_id") or "" for each in seen["jobs"]}
    parts = ("copies", "settings")
    local = {name for look in looks.values() for part in parts for name in (look.get("answer") or {}).get(part, {})}
    if job and job not in {*jobs, *local}:
        raise ValueError(f"job={job}: there is no such job; there are {', '.join(sorted(jobs)) or 'none'}")
    chosen, left = [], []
    for name in [job] if job else sorted({*jobs, *local}):
        if jobs.get(name) in GOING or active_nodes(looks, name):
            left.append(f"job {name} is {jobs.get(name, 'at work')}: stop it first (playbooks/stop.yml -e job={name})")
        elif NAME.fullmatch(name):
            chosen.append(name)
    if job and left:
        raise ValueError(left[0])
    return chosen, left, starts.get(job, "")


class ActionModule(ActionBase):
    """Arguments: looks (of ask_node with look.py, by name), job, keep, everything, head. Returns jobs, left and
    run_id.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        texts = (str(arguments[name]) for name in ("job", "keep"))
        try:
            jobs, left, run_id = plan(arguments["looks"], *texts, bool(arguments["everything"]), arguments["head"])
        except ValueError as error:
            raise AnsibleActionFail(str(error)) from None
        return result | {"changed": False, "jobs": jobs, "left": left, "run_id": run_id}
