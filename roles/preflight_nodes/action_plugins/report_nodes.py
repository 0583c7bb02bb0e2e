"""Say everything that is wrong with the nodes at once, and end the run if any of it must be mended first."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from node_rules.compare import compare


class ActionModule(ActionBase):
    """Arguments: answers (of probe_node, by name), clock_error and clock_warning in seconds."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        answers = self._task.args["answers"]
        found = [finding for answer in answers.values() for finding in answer["findings"]]
        together = compare(answers, int(self._task.args["clock_error"]), int(self._task.args["clock_warning"]))
        found += [finding.of(name) for name, finding in together]
        errors = [finding["text"] for finding in found if finding["fatal"]]
        for finding in found:
            if not finding["fatal"]:
                self._display.display(f"warning: {finding['text']}", color=constants.COLOR_WARN)
        # One is Ansible's own error line; several would be one line with \n in it.
        if len(errors) > 1:
            for text in errors:
                self._display.display(text, color=constants.COLOR_ERROR)
            errors = [f"{len(errors)} things to mend first, listed above; nothing has been changed"]
        result.update(changed=False, failed=bool(errors), msg="".join(errors) or "the nodes are fine")
        return result
