"""Show how a job goes: wait for its first step, then one line per interval to its end, then a summary; between the
lines what has happened, such as a node that is lost.

Reads the job's state file on the head with one short command per interval, which a share that hangs does not hold, and
changes nothing, so it may be interrupted and repeated at will. The lines go through Ansible's own Display.
"""

from __future__ import annotations

import datetime
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import (
    AnsibleActionFail,
    AnsibleConnectionFailure,
    AnsiblePromptInterrupt,
    AnsiblePromptNoninteractive,
)
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "job_look"))
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from job_view import document
from job_view.events import events
from job_view.figures import duration, is_silent, names, progress_line, where
from job_view.picture import find, head_problem, picture

from training import failures
from training.plain import everywhere

display = Display()
ENDED = ("done", "stopped", "failed")
EXPLAINED_WITHIN = 60  # seconds from the end of a job to its nodes' word of why
SHARE_PATIENCE = 5  # seconds for the share to give the state


def summary(job: str, state: dict[str, Any], shared: str) -> str:
    """Return what a person wants to know at the end."""
    lines = [f"Job {job}: {state['state']} {where(state)}"]
    lines += failures.told(state)
    if state.get("alarm"):
        lines.append(f"  alarm        {state['alarm']}")
    if state.get("nodes"):
        lines.append(
            f"  nodes        {names(state['nodes'])} ({state.get('world_size')} processes, {state.get('backend')})"
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


class ActionModule(ActionBase):
    """Arguments: job (or looks, to find the one that runs), jobs (the folder of all on the head), head (its name),
    interval and first_step_timeout in seconds, to_the_end, output (a file, or nothing), program (read_state.py),
    python (on the head).
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        job, looks = str(arguments["job"]), arguments["looks"]
        if looks:
            try:
                job = self._meant(job, looks)
            except ValueError as error:
                raise AnsibleActionFail(str(error)) from None
        shared = f"{arguments['jobs']}/{job}"
        self._begin()
        try:
            state = self._follow(job, shared)
        except AnsiblePromptInterrupt:
            self._write(job, self._state)
            message = f"job {job} goes on: playbooks/watch.yml -e job={job} follows it, playbooks/stop.yml stops it"
            display.display(message)
            return result | {"changed": False, "msg": message}
        if state.get("state") in ENDED:
            display.display(summary(job, state, shared))
        self._write(job, state)
        result.update(changed=False, state=state, failed=state["state"] == "failed")
        result["msg"] = f"job {job} is {state['state']} {where(state)}"
        if result["failed"]:
            result["msg"] = f"job {job} failed: {state.get('reason', 'no reason recorded')}"
        return result

    def _write(self, job: str, state: dict[str, Any], problem: str = "") -> None:
        content = {"job": job, "state": state, "events": self._happened} | ({"problem": problem} if problem else {})
        document.write(str(self._task.args["output"]), "watch", content)

    def _begin(self) -> None:
        self._interactive, self._happened = True, []
        self._state: dict[str, Any] = {}  # as it was read last
        self._lasting: set[str] = set()  # what is wrong, and was said: off (the head), unread (the share), silent
        self._written: float | None = None  # when the state was written that was read last, on time.monotonic()

    def _meant(self, job: str, looks: dict[str, Any]) -> str:
        """Return the name of the job. ValueError: one line that says why it cannot be watched, and what to do."""
        head = self._task.args["head"]
        if problem := head_problem(looks, head):
            raise ValueError(
                f"{head}, the head: {problem}. A job is watched through the head alone: playbooks/status.yml shows "
                "what the other nodes do meanwhile"
            )
        return find(picture(looks), job)["job"]

    def _follow(self, job: str, shared: str) -> dict[str, Any]:
        """Return the state that ended the watch: ended, or running where the first step is enough."""
        began, patience = time.monotonic(), float(self._task.args["first_step_timeout"])
        state: dict[str, Any] = {}
        first = None  # the step at which this watch found the job at work: a resumed one starts at its checkpoint's
        while True:
            before, state = state, self._read(shared) or state
            self._state = state
            for event in events(before, state):
                self._say(event)
            if state.get("state") in ENDED:
                return self._explained(state, shared)
            running = state.get("state") == "running"
            first = state.get("step", 0) if running and first is None else first
            has_stepped = running and first is not None and ("script" in state or state.get("step", 0) > first)
            if has_stepped:
                patience = float("inf")
            if has_stepped and not self._task.args["to_the_end"]:
                display.display(progress_line(state))
                return state
            if (waited := time.monotonic() - began) > patience:
                problem = (
                    f"job {job} has not made a step within {patience:.0f} s: playbooks/logs.yml -e job={job} "
                    f"says what it waits for. It is still there; playbooks/stop.yml -e job={job} stops it"
                )
                self._write(job, state, problem)
                raise AnsibleActionFail(problem)
            line = f"waiting for a first step ({waited:.0f} s); Ctrl-C ends the watching, not the job"
            if state.get("step") or (running and "script" in state):
                line = progress_line(state)
            # Before its first step it has nothing to say, and is waited for as above.
            if running and (patience == float("inf") or state.get("step", 0) > state.get("resumed_at", 0)):
                line += self._without_word(job, state)
            self._show(line)

    def _without_word(self, job: str, state: dict[str, Any]) -> str:
        """Return what a line has to say that may be an old one, and say so once: nobody is left who writes the state
        when all nodes that train have lost their power.
        """
        age = time.monotonic() - self._written
        silent, for_long = is_silent(state, age), f"no word for {duration(age)}"
        if "unread" not in self._lasting and "off" not in self._lasting:
            why = f"playbooks/status.yml shows what its nodes do, playbooks/logs.yml -e job={job} what they said"
            self._lasts("silent", silent, f"{for_long}: {why}", f"there is word of job {job} again")
        return f"  ({for_long})" if silent else ""

    def _explained(self, state: dict[str, Any], shared: str) -> dict[str, Any]:
        """Return the end with its reason: who lost a peer says so at once, and the peer's node a few seconds later.

        Of a job that ended long ago nobody says anything more.
        """
        patience = (time.monotonic() if self._written is None else self._written) + EXPLAINED_WITHIN
        while state.get("state") == "failed" and not failures.is_settled(state) and time.monotonic() < patience:
            time.sleep(2)
            state = self._read(shared) or state
        return state

    def _lasts(self, what: str, now: bool, begins: str, ends: str) -> None:
        """Say that something begins, or that it is over, once each."""
        if now != (what in self._lasting):
            self._lasting ^= {what}
            self._say(begins if now else ends)

    def _say(self, event: str) -> None:
        display.display(f"{time.strftime('%H:%M:%S')}  {event}", color=constants.COLOR_HIGHLIGHT)
        self._happened.append({"time": time.time(), "event": event})

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
        """Read the state file on the head; empty while there is none, or it cannot be read."""
        head = self._task.args["head"]
        try:
            answer = self._ask(f"{shared}/state.json")
        except AnsibleConnectionFailure:
            answer = None
        self._lasts("off", answer is None, f"{head} does not answer", f"{head} answers again")
        if answer is None:
            return {}
        state, problem = {}, answer["problem"]
        try:
            state = everywhere(json.loads(answer["text"] or "{}"))
        except ValueError as error:
            problem = f"state.json cannot be understood ({error})"
        if self._written is not None and not (state or problem):
            problem = "state.json is not there any more"
        self._lasts("unread", bool(problem), f"{head}: {problem}", f"{head} reads the job's state again")
        if state:
            self._written = time.monotonic() - answer["age"]
        return state

    def _ask(self, file: str) -> dict[str, Any]:
        """Return what read_state.py answers; what it cannot say is a problem, too."""
        asked = json.dumps({"file": file, "patience": SHARE_PATIENCE})
        program = Path(self._task.args["program"]).read_bytes()
        words = shlex.join([self._task.args["python"], "-", asked])
        done = self._low_level_execute_command(words, in_data=program)
        # sudo may say something before it, such as that it cannot resolve the machine's name.
        line = (done["stdout"].splitlines() or [""])[-1]
        if line.startswith("{"):
            return json.loads(line)
        said = (done["stderr"] or done["stdout"]).strip().splitlines() or ["without a word"]
        return {"text": "", "age": 0, "problem": f"the job's state cannot be read: {said[-1]}"}
