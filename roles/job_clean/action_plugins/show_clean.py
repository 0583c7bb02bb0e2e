"""Say what was removed where, or what would be."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "job_look"))

from job_view import document
from job_view.figures import size


def cleaned(places: Mapping[str, Mapping[str, Any]], left: list[str], goes: str) -> list[str]:
    """Return the lines; `places` are the answers of clean.py, by where, and `goes` is how it is said."""
    lines, notes, total = [], [], 0
    for place, look in places.items():
        if look["problem"]:
            notes.append(f"{place}: {look['problem']}. What it has stays; type the same once it is back")
            continue
        answer = look["answer"]
        total += answer["bytes"]
        notes += [f"{place}: {note}" for note in answer["notes"]]
        for job, paths in answer["removed"].items():
            what = "all of it" if paths == ["."] else ", ".join(Path(path).name for path in paths)
            kept = ", ".join(Path(path).name for path in answer["kept"].get(job, []))
            lines.append(f"{job}, {place}: {goes}: {what}{f'; stays: {kept}' if kept else ''}")
    lines = lines or ["There is nothing to remove."]
    if total:
        lines.append(f"{size(total)} in all.")
    return [*lines, *left, *notes]


class ActionModule(ActionBase):
    """Arguments: shared (of ask_node with clean.py, on the share), nodes (the same of each node's disk, by name),
    left (of plan_clean), look_only, output.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        places = {"the share": arguments["shared"], **arguments["nodes"]}
        look_only = bool(arguments["look_only"])
        for line in cleaned(places, arguments["left"], "would go" if look_only else "gone"):
            self._display.display(line)
        content = {place: {"problem": look["problem"], **look["answer"]} for place, look in places.items()}
        document.write(str(arguments["output"]), "clean", {"look_only": look_only, "places": content})
        return result | {"changed": False, "msg": "shown above"}
