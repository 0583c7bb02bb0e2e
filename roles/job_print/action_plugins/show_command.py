"""Show what a job's unit runs on each node, as lines to type by hand; nothing is changed."""

from __future__ import annotations

import re
import secrets
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "job_look"))

from job_view import document

WIDTH = 110


class Command(NamedTuple):
    directory: str
    environment: dict[str, str]
    words: list[str]


def command_of(job: str, unit: str, settings: str, rendezvous: str, by_hand: str, joins: bool = False) -> Command:
    """What systemd makes of the unit's ExecStart= for this job. ValueError where the text is no such unit.

    `settings` and `rendezvous` are its environment files, the second empty where the unit is not at work. Then it is
    for a start by hand, at the rendezvous `by_hand`: under the id of the last start nothing would be left to do. Where
    others are at work (`joins`) it belongs to their start.
    """
    text = unit.replace("\\\n", " ")
    lines = dict(re.findall(r"^(ExecStart|WorkingDirectory|User)=(.*)$", text, re.MULTILINE))
    environment = dict(re.findall(r"^([A-Za-z_]\w*)=(.*)$", f"{settings}\n{rendezvous}", re.MULTILINE))
    environment.pop("MINOS_CLOCK", None)  # of this start of the unit alone
    if "ExecStart" not in lines or "MINOS_RUN_ID" not in environment:
        raise ValueError(f"there is no job {job}")
    if "MINOS_RENDEZVOUS" not in environment:
        environment["MINOS_RENDEZVOUS"] = by_hand
        if not joins:
            del environment["MINOS_RUN_ID"]

    def specified(word: str) -> str:
        return word.replace("%i", job).replace("%t", "/run")

    def filled(word: str) -> str:
        return re.sub(r"\$\{(\w+)\}", lambda name: environment.get(name[1], ""), specified(word))

    words = [filled(word) for word in shlex.split(lines["ExecStart"])]
    return Command(directory=specified(lines.get("WorkingDirectory", "/")), environment=environment, words=words)


def lines_of(command: Command) -> list[str]:
    """The command as one types it in a shell, in lines that end where an option begins."""
    lines = [f"cd {shlex.quote(command.directory)}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in command.environment.items()]
    typed = [""]
    for word in map(shlex.quote, command.words):
        if word.startswith("-") and len(typed[-1]) + len(word) > WIDTH:
            typed.append("   ")
        typed[-1] += f" {word}" if typed[-1] else word
    return [*lines, *(f"{line} \\" for line in typed[:-1]), typed[-1]]


class ActionModule(ActionBase):
    """Arguments: job, user, planned (the job may not be there yet), output (a file, or nothing), nodes: name -> unit,
    settings, rendezvous, or problem: why it has not answered.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        job, user, planned = self._task.args["job"], self._task.args["user"], self._task.args["planned"]
        commands, nodes = {}, self._task.args["nodes"]
        off = {node: texts["problem"] for node, texts in nodes.items() if "problem" in texts}
        texts_of = {node: texts for node, texts in nodes.items() if node not in off}
        there = "\n".join(texts["rendezvous"] for texts in texts_of.values())
        meeting = re.search(r"^MINOS_RENDEZVOUS=(.+)$", there, re.MULTILINE)
        # A node that is not at work would join the others.
        by_hand = meeting[1] if meeting else f"{job}-by-hand-{secrets.token_hex(4)}"
        for node, texts in texts_of.items():
            try:
                commands[node] = command_of(job, **texts, by_hand=by_hand, joins=bool(meeting))
            except ValueError as problem:
                Display().display(f"# {node}: {problem}\n")
        for node, problem in off.items():
            Display().display(f"# {node}: {problem}\n")
        if not commands:
            raise AnsibleActionFail(
                f"there is no job '{job}' on these nodes; write -e job=NAME for one that is there, "
                "or what train.yml takes, -e nnodes=3 and so on"
            )
        for node, command in commands.items():
            Display().display("\n".join(["", heading(node, user, planned), *map(without_password, lines_of(command))]))
        content = {node: each._asdict() for node, each in commands.items()}
        document.write(
            str(self._task.args["output"]), "print", {"job": job, "user": user, "nodes": content, "no_answer": off}
        )
        return result | {"changed": False, "commands": list(content)}


def without_password(line: str) -> str:
    """A proxy's password is for the document, which is its owner's alone, and for the settings of the job there."""
    return re.sub(r"(://[^\s/@:]*):[^\s/@]*@", r"\1:PASSWORD@", line)


def heading(node: str, user: str, planned: bool) -> str:
    """A comment for the shell: where, as whom, and what has to be there before."""
    before = "; train.yml puts code, config and data there" if planned else ""
    return f"# {node}, as {user} (sudo -u {user} -s){before}"
