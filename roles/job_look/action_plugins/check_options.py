"""Check what a verb is given with -e, before any node is asked: a misspelt name would be ignored without a word, and
another job might be stopped than the one that was meant.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "preflight"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from inventory_rules.options import known_names, names_in_files, owners, role_options, words_of_commands
from job_view import document


def may_be_written(file: Path) -> bool:
    """Whether a document can be put there. It replaces what is there: a device or a pipe would be one no more."""
    place = file.resolve()
    usual = place.is_file() if place.exists() else not file.is_relative_to("/dev")
    return usual and place.parent.is_dir() and os.access(place.parent, os.W_OK | os.X_OK)


# What each kind of value must be, and what to write else.
KINDS: dict[str, tuple[Callable[[str], bool], str]] = {
    "name": (
        lambda text: bool(re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,62}", text)),
        "no job has such a name; playbooks/jobs.yml lists them",
    ),
    "number": (lambda text: bool(re.fullmatch(r"[1-9][0-9]{0,8}", text)), "write a whole number, 1 or more"),
    "switch": (lambda text: text.lower() in ("true", "false", "yes", "no"), "write true or false"),
    "file": (
        lambda text: may_be_written(Path(text).expanduser().absolute()),
        "write the path of a file in a directory that is there and that you may write to",
    ),
    "directory": (
        lambda text: bool(text) and not Path(text).expanduser().is_file(),
        "write the path of a directory on this machine",
    ),
}


def wrong(
    given: Mapping[str, Any], options: Mapping[str, str], others: Collection[str], elsewhere: Collection[str] = ()
) -> str:
    """Return one line about the first thing that cannot be used, or nothing.

    `options` are those of the verb with their kinds; `others` are further names that mean something, `elsewhere` those
    that do so to train.yml or to another verb.
    """
    takes = ", ".join(options)
    for name, value in given.items():
        if name in options:
            sound, fix = KINDS[options[name]]
            if not sound(str(value)):
                return f"-e {name}={value}: {fix}"
        elif name == "_raw_params":  # what Ansible makes of the words behind a blank
            return f"-e ... {value}: a blank ends a value; quotes within the quotes keep it: -e \"to='my results'\""
        elif name in elsewhere:
            return (
                f"-e {name}: train.yml or another playbook takes this; here it would change nothing. It takes {takes}"
            )
        elif name not in others and not name.startswith("ansible_"):
            near = difflib.get_close_matches(name, options, 1)
            return f"-e {name}: nothing has this name; {f'did you mean {near[0]}? ' if near else ''}It takes {takes}"
    return ""


class ActionModule(ActionBase):
    """Arguments: options (name -> kind of each that the verb takes)."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        given, options = load_extra_vars(self._loader), self._task.args["options"]
        problem = ""
        if given:
            elsewhere, known = words_of_commands(), known_names(role_options())
            # A file is for several commands; what is typed is for this one.
            in_files = names_in_files(context.CLIARGS.get("extra_vars", ()), self._loader)
            known |= in_files & elsewhere | owners(in_files, {*options, *known})
            elsewhere -= in_files
            problem = wrong(given, options, known - elsewhere, elsewhere)
        if "output" in given and "output" in options and not wrong({"output": given["output"]}, options, ()):
            # That of an earlier run would be taken for this one's answer, were there none.
            document.write(str(given["output"]), "", {"problem": problem or "the verb did not come to its end"})
        if problem:
            raise AnsibleActionFail(problem)
        return result | {"changed": False}
