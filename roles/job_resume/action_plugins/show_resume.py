"""Say from where a job goes on, and on which nodes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "job_look"))

from job_view import document


def resumed(
    job: Mapping[str, Any], plan: Mapping[str, Any], begun: Mapping[str, Any], units: Mapping[str, Any]
) -> tuple[list[str], bool]:
    """Return what to say, and whether the job goes on."""
    name = job["job"]
    if begun["problem"]:
        return [f"job {name} could not be started: {begun['problem']}"], False
    if begun["answer"]["refused"]:
        return [begun["answer"]["refused"]], False
    failed = {node: look["problem"] for node, look in units.items() if look.get("problem")}
    if failed:
        said = "; ".join(f"{node}: {problem}" for node, problem in failed.items())
        return [f"job {name} was started, but not everywhere ({said}): stop it, mend that, resume it"], False
    checkpoint = job.get("checkpoint")
    where = f"the checkpoint of step {checkpoint['step']}" if checkpoint else "its newest checkpoint, if there is one"
    on = ", ".join(plan["nodes"])
    text = [f"Job {name} goes on from {where} on {on}: playbooks/watch.yml -e job={name} shows it."]
    if plan["away"]:
        text.append(
            f"Without {', '.join(plan['away'])}, which {'does' if len(plan['away']) == 1 else 'do'} not answer: "
            "once back, the train.yml line of this job lets them join."
        )
    return text, True


class ActionModule(ActionBase):
    """Arguments: job (of find_job), plan (of plan_resume), begun and units (of ask_node), output."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        job, plan = self._task.args["job"], self._task.args["plan"]
        lines, fine = resumed(job, plan, self._task.args["begun"], self._task.args["units"])
        content = {"job": job["job"], "resumed": fine, "nodes": plan["nodes"], "away": plan["away"]}
        content |= {"run_id": plan["run_id"], "checkpoint": job.get("checkpoint"), "message": " ".join(lines)}
        if fine:
            for line in lines:
                self._display.display(line)
        document.write(str(self._task.args["output"]), "resume", content)
        return result | {"changed": False, "failed": not fine, "msg": " ".join(lines)}
