"""Show how a job goes: wait for its first step, then one line per interval to its end, then a summary.

Reads the job's state file on the head with one short command per interval and changes nothing, so it may be
interrupted and repeated at will. The lines go through Ansible's own Display.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

from ansible.errors import (
    AnsibleActionFail,
    AnsibleConnectionFailure,
    AnsiblePromptInterrupt,
    AnsiblePromptNoninteractive,
)
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from training import failures

display = Display()
ENDED = ("done", "stopped", "failed")
EXPLAINED_WITHIN = 30  # seconds from the end of a job to its nodes' word of why


def eta(state: dict[str, Any]) -> str:
    """Return the time to the end as h:mm:ss, from the mean step so far."""
    if not state.get("mean_step_seconds"):
        return "?"
    left = (state["steps"] - state["step"]) * state["mean_step_seconds"]
    return str(datetime.timedelta(seconds=round(left)))


def progress_line(state: dict[str, Any]) -> str:
    """Return one line: step, loss, held-out loss where known, tokens/s, ETA, and what needs somebody's hand."""
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


def summary(job: str, state: dict[str, Any], shared: str) -> str:
    """Return what a person wants to know at the end."""
    lines = [f"Job {job}: {state['state']} at step {state.get('step', 0)} of {state.get('steps', '?')}"]
    lines += failures.told(state)
    if state.get("alarm"):
        lines.append(f"  alarm        {state['alarm']}")
    if state.get("nodes"):
        lines.append(
            f"  nodes        {', '.join(state['nodes'])} ({state.get('world_size')} processes, {state.get('backend')})"
        )
    if state.get("heldout_last") is not None:
        lines.append(f"  held-out     loss {state['heldout_first']:.4f} before, {state['heldout_last']:.4f} now")
    if state.get("train_seconds"):
        took = datetime.timedelta(seconds=round(state["train_seconds"]))
        lines.append(
            f"  speed        {state.get('tokens_per_s', 0):,.0f} tokens/s, "
            f"{state.get('mean_step_seconds', 0):.3f} s a step, {took} in all"
        )
    for name in ("checkpoint", "model", "plot"):
        if state.get(name):
            lines.append(f"  {name:<12} {state[name]}")
    if state.get("tokens_per_s"):
        lines.append(f"  metrics      {shared}/metrics, {shared}/tensorboard")
    lines.append(f"  logs         on each node: journalctl -u minos-train@{job}")
    if state.get("sample"):
        lines += ["  sample", *(f"    | {line}" for line in str(state["sample"]).rstrip().splitlines())]
    return "\n".join(lines)


def script_line(state: dict[str, Any]) -> str:
    """Return one line on a script of the user's own, which tells no steps."""
    began = datetime.datetime.fromisoformat(state["attempt_began"])
    since = datetime.timedelta(seconds=round((datetime.datetime.now(datetime.UTC) - began).total_seconds()))
    restarts = f", started {state['starts']} times" if state.get("starts", 1) > 1 else ""
    return f"{state['script']} runs on {', '.join(state['nodes'])} for {since}{restarts}"


class ActionModule(ActionBase):
    """Arguments: job, shared (its folder on the head), interval and first_step_timeout in seconds, to_the_end."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        job, shared = self._task.args["job"], self._task.args["shared"]
        self._interactive = True
        try:
            state = self._follow(job, shared)
        except AnsiblePromptInterrupt:
            message = f"job {job} goes on: the same command follows it again, playbooks/stop.yml -e job={job} stops it"
            display.display(message)
            return result | {"changed": False, "msg": message}
        if state.get("state") in ENDED:
            display.display(summary(job, state, shared))
        result.update(changed=False, state=state, failed=state["state"] == "failed")
        result["msg"] = f"job {job} is {state['state']} at step {state.get('step', 0)}"
        if result["failed"]:
            result["msg"] = f"job {job} failed: {state.get('reason', 'no reason recorded')}"
        return result

    def _follow(self, job: str, shared: str) -> dict[str, Any]:
        """Return the state that ended the watch: ended, or running where the first step is enough."""
        began, patience = time.monotonic(), float(self._task.args["first_step_timeout"])
        state: dict[str, Any] = {}
        first = None  # the step at which this watch found the job at work: a resumed one starts at its checkpoint's
        while True:
            state = self._read(shared) or state
            if state.get("state") in ENDED:
                return self._explained(state, shared)
            running = state.get("state") == "running"
            first = state.get("step", 0) if running and first is None else first
            has_stepped = running and first is not None and ("script" in state or state.get("step", 0) > first)
            if has_stepped:
                patience = float("inf")
            if has_stepped and not self._task.args["to_the_end"]:
                display.display(script_line(state) if "script" in state else progress_line(state))
                return state
            if (waited := time.monotonic() - began) > patience:
                raise AnsibleActionFail(
                    f"job {job} has not made a step within {patience:.0f} s: `journalctl -u minos-train@{job}` on its "
                    f"nodes says what it waits for. It is still there; playbooks/stop.yml -e job={job} stops it"
                )
            waiting = f"waiting for a first step ({waited:.0f} s); Ctrl-C ends the watching, not the job"
            line = progress_line(state) if state.get("step") else waiting
            self._show(script_line(state) if running and "script" in state else line)

    def _explained(self, state: dict[str, Any], shared: str) -> dict[str, Any]:
        """Return the end with its reason: who lost a peer says so at once, and the peer's node a few seconds later."""
        patience = time.monotonic() + EXPLAINED_WITHIN
        while state.get("state") == "failed" and not failures.is_settled(state) and time.monotonic() < patience:
            time.sleep(2)
            state = self._read(shared) or state
        return state

    def _show(self, line: str) -> None:
        """Display one line and wait for an interval; Ctrl-C in it raises AnsiblePromptInterrupt.

        The wait is Ansible's prompt with a time limit, as in its pause module: a worker process has no terminal.
        """
        interval = int(self._task.args["interval"])
        if self._interactive:
            try:
                display.prompt_until(line, private=True, seconds=interval, interrupt_input=(b"\x03",))
                return
            except AnsiblePromptNoninteractive:
                self._interactive = False
        display.display(line)
        time.sleep(interval)

    def _read(self, shared: str) -> dict[str, Any]:
        """Read the state file on the head; empty while there is none or the head does not answer."""
        try:
            answer = self._low_level_execute_command(f"cat {self._connection._shell.quote(shared + '/state.json')}")
            return json.loads(answer["stdout"])
        except (AnsibleConnectionFailure, ValueError) as problem:
            display.vv(f"no state this time: {problem}")
            return {}
