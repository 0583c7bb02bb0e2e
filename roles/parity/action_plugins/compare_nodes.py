"""Say in what nodes differ, as a table, and end the run if they do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from training.parity import compare

NO_JOB = 3  # what asking ends with on a node where the job has never been started


class ActionModule(ActionBase):
    """Arguments: answers (of the command on each node, by name; the first node is the standard), job, and any_driver:
    whether the nodes' drivers may differ.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        answers, job = self._task.args["answers"], self._task.args["job"]
        facts, wrong = {}, []
        for name, answer in answers.items():
            if answer["rc"] == NO_JOB and job:
                self._display.display(f"{name}: job {job} has never been started there")
            elif answer["rc"]:
                said = (answer.get("stderr") or answer.get("msg") or "nothing").strip().splitlines()[-1]
                wrong.append(f"{name} cannot say what it runs with ({said}): run site.yml")
            else:
                facts[name] = json.loads(answer["stdout"])
        known = facts
        if boolean(self._task.args["any_driver"]):
            known = {
                name: {what: fact for what, fact in each.items() if what != "driver"} for name, each in facts.items()
            }
        sentence, table = compare(known) if known else ("", [])
        for line in table:
            self._display.display(line, color=constants.COLOR_ERROR)
        if sentence:
            wrong.append(f"{sentence}; the table above shows both. {_mend(table)}")
        if not facts and not wrong:
            wrong.append(f"job={job}: no node has a job of that name; playbooks/status.yml lists them")
        if not wrong:
            self._display.display(_alike(facts))
        result.update(changed=False, failed=bool(wrong), msg="\n".join(wrong))
        return result


def _mend(table: list[str]) -> str:
    if any(line.startswith(("code ", "config")) for line in table):
        return "Code and config come from train.yml: remove the folder code-* of the job there, and start it again."
    return "site.yml installs the same packages everywhere; a driver is updated on all nodes, then they are rebooted."


def _alike(facts: dict[str, dict[str, str]]) -> str:
    first = next(iter(facts.values()))
    packages = sum(what.startswith("package ") for what in first)
    drivers = sorted({each["driver"] for each in facts.values() if "driver" in each})
    known = [f"Python {first['python'].split()[0]}", f"torch {first.get('package torch', 'none').split()[0]}"]
    known += [f"driver {driver}" for driver in drivers] + [f"{packages} packages"]
    known += ["code"] * any(what.startswith("code ") for what in first) + ["config"] * ("config" in first)
    nodes = ", ".join(facts)
    return f"{nodes}: {'the same ' * (len(facts) > 1)}{', '.join(known)}"
