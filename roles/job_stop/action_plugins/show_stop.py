"""Say where a job stands that was stopped, and what of it could not be reached."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "job_look"))

from job_view import document, figures

GOING = ("starting", "running")


def last_state(asked: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the job's state as the head has read it last."""
    return (recorded.get("answer") or asked["answer"]).get("state", {})


def stopped(
    job: str, head: str, asked: Mapping[str, Any], recorded: Mapping[str, Any], units: Mapping[str, Any]
) -> tuple[list[str], bool]:
    """Return what to say, and whether the job is stopped for good."""
    state = last_state(asked, recorded)
    off = {name: look["problem"] for name, look in units.items() if look["problem"]}
    were = [name for name, look in units.items() if look["answer"].get("was") in ("active", "activating")]
    on = f" The units of {', '.join(were)} are stopped." if were else ""
    if asked["problem"]:
        return [
            f"Job {job} could not be asked: {head}, the head: {asked['problem']}.{on} "
            f"Type the same once {head} answers: until then the job's state does not say that it is stopped."
        ], False
    if recorded.get("problem"):
        return [
            f"That job {job} is stopped could not be written down: {head}, the head: {recorded['problem']}.{on} "
            "Mend that and type the same again: until then the job's state does not say that it is stopped."
        ], False
    where = figures.where(state)
    text = [f"Job {job} is {state.get('state')} {where}."]
    if state.get("reason"):
        text.append(f"  {state['reason']}")
    if not asked["answer"].get("asked"):
        text[0] = f"Job {job} is {state.get('state')} already, {where}."
    for name, problem in off.items():
        text.append(f"  {name}: {problem}. When it is back, its unit finds the job stopped and stays off.")
    return text, state.get("state") not in GOING


class ActionModule(ActionBase):
    """Arguments: job, head, asked (of ask_node with ask_job.py), recorded (with record.py, or nothing), units (with
    stop_unit.py, by name), output.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        job, asked, units = arguments["job"], arguments["asked"], arguments["units"]
        recorded = arguments["recorded"]
        lines, fine = stopped(job, arguments["head"], asked, recorded, units)
        content = {"job": job, "state": last_state(asked, recorded), "stopped": fine}
        content["nodes"] = {name: {"problem": look["problem"], **look["answer"]} for name, look in units.items()}
        if fine:
            for line in lines:
                self._display.display(line)
        document.write(str(arguments["output"]), "stop", content)
        return result | {"changed": False, "failed": not fine, "msg": " ".join(lines)}
