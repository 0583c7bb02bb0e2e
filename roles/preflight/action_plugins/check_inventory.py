"""Say everything that is wrong with the inventory at once, before any node is contacted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase
from ansible.release import __version__

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# The rules need what an older Ansible, such as the distribution's, does not have: that is said instead.
OLD_ANSIBLE = tuple(map(int, __version__.split(".")[:2])) < (2, 19)
if not OLD_ANSIBLE:
    from inventory_rules import findings
    from inventory_rules.inventory import Inventory
    from inventory_rules.public import warning

OLD = (
    f"this is ansible-core {__version__}, and 2.19 or newer is needed: run make venv in the project's folder, then "
    "source .venv/bin/activate"
)
OTHER_CONFIG = (
    "this project's ansible.cfg is not in force, and without it the inventory's settings would be overruled: "
    "run from the project's own folder, not writable by others, with ANSIBLE_CONFIG unset"
)
PARTIAL = "--limit {limit} would leave the other members out of step (hosts, keys, firewall): run without it"


class ActionModule(ActionBase):
    """Fail with all findings; `partial_ok: true` accepts --limit."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        if OLD_ANSIBLE:
            wrong = [OLD]
        elif constants.config.get_config_value("VARIABLE_PRECEDENCE")[0] != "all_plugins_inventory":
            wrong = [OTHER_CONFIG]
        elif task_vars.get("inventory_error"):  # of a script that asks a cloud
            wrong = [task_vars["inventory_error"]]
        else:
            sources = [str(path) for path in task_vars.get("ansible_inventory_sources") or []]
            hostvars, groups = task_vars["hostvars"], task_vars["groups"]
            inventory = Inventory(hostvars, groups, sources, self._loader)
            wrong = findings(inventory)
            if not wrong and (line := warning(inventory)):
                self._display.warning(line)
        if task_vars.get("ansible_limit") and not self._task.args.get("partial_ok"):
            wrong.append(PARTIAL.format(limit=task_vars["ansible_limit"]))
        # One is Ansible's own error line; several would be one line with \n in it.
        if len(wrong) > 1:
            for line in wrong:
                self._display.display(line, color=constants.COLOR_ERROR)
            wrong = [f"{len(wrong)} mistakes, listed above; no node has been contacted"]
        result.update(changed=False, failed=bool(wrong), msg="".join(wrong) or "the inventory is fine")
        return result
