"""Run a small Python program on a node and take its JSON answer; that a node does not answer is an answer, too.

One command over SSH, with nothing left on the node: cheaper than a module, and it never fails the play.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "roles" / "preflight_nodes"))
sys.path.insert(0, str(ROOT))

from node_rules.login import NO_ROOT, UNREACHABLE, explain, last_line, reached  # noqa: E402  (found above)

from training.plain import everywhere, plain  # noqa: E402

# What of the training package needs no torch: a job's state, and its checkpoints.
MODULES = (
    "__init__.py",
    "errors.py",
    "failures/*.py",
    "files.py",
    "journals.py",
    "plain.py",
    "state.py",
    "storage/*.py",
)
# Where site.yml has never been, or has not come to its end.
NO_SITE = (
    (r"sudo: unknown user|user \S+ does not exist", "there is no account for training"),
    (r"python\S*: (not found|No such file)", "there is no Python environment"),
)
# Else what is said comes of the program itself.
OF_SUDO = r"(?im)^\[?sudo\b|sudo: |password|privilege|not in the sudoers|^Sorry, try again"
# In memory: the disk there may be full.
RUN = """\
import os, runpy, sys
file = os.memfd_create("program")
os.write(file, sys.stdin.buffer.read())
runpy.run_path(f"/proc/self/fd/{file}", run_name="__main__")
"""


def bundle(program: Path, with_training: bool) -> bytes:
    """Return an archive that Python can run: the program, and what it imports of the training package."""
    files = {"__main__.py": program}
    if with_training:
        folder = ROOT / "training"
        found = sorted(path for pattern in MODULES for path in folder.glob(pattern))
        files |= {str(path.relative_to(ROOT)): path for path in found}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files.items():
            archive.writestr(name, path.read_bytes())
    return buffer.getvalue()


class ActionModule(ActionBase):
    """Arguments: program (a file here), asked (its one argument), python (there), with_training (that it imports), say
    (a line to show before, where the answer takes long), and problem: why the node has not answered before; it is not
    asked again then.

    Returns `answer` (empty where there was none), `problem` (why, in one line), and when it was asked and answered
    (`before`, `after`). `changed` is the answer's.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        archive = bundle(Path(arguments["program"]), bool(arguments.get("with_training")))
        words = [arguments.get("python", "/usr/bin/python3"), "-c", RUN, json.dumps(arguments.get("asked", {}))]
        result["before"] = time.time()
        problem = str(arguments.get("problem") or "")
        if arguments.get("say") and not problem:
            self._display.display(str(arguments["say"]))
        answer, problem = ({}, problem) if problem else self._ask(shlex.join(words), archive)
        changed = bool(answer.get("changed"))
        result |= {"after": time.time(), "changed": changed, "answer": answer, "problem": problem}
        return result | ({"msg": problem} if problem else {})

    def _ask(self, command: str, archive: bytes) -> tuple[dict[str, Any], str]:
        """Return the answer and an empty line, or nothing and why."""
        try:
            done = self._low_level_execute_command(command, in_data=archive)
        except AnsibleError as error:
            return {}, self._explain(NO_ROOT if reached(str(error)) else UNREACHABLE, str(error))
        # sudo may say something before it, such as that it cannot resolve the machine's name.
        line = (done["stdout"].splitlines() or [""])[-1]
        if line.startswith("{"):
            return everywhere(json.loads(line)), ""  # names and reasons are what somebody's program says
        said = done["stderr"] or done["stdout"]
        if found := next((what for pattern, what in NO_SITE if re.search(pattern, said)), ""):
            return {}, f"{found}: run site.yml"
        return {}, self._explain(NO_ROOT, said) if re.search(OF_SUDO, said) else plain(last_line(said))

    def _explain(self, table: tuple[tuple[str, str, str], ...], said: str) -> str:
        context = self._play_context
        return explain(table, said, context.remote_user or "", context.remote_addr, int(context.port or 22))
