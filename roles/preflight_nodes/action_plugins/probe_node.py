"""Ask a node everything that preflight wants to know, in one command, and judge the answer.

Succeeds in any case: a node that cannot be reached, or where sudo fails, is a finding like the others.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from node_rules import findings
from node_rules.answer import Answer, Asked, Finding, error
from node_rules.compare import offset
from node_rules.login import NO_ROOT, UNREACHABLE, explain, reached
from node_rules.running import running


class ActionModule(ActionBase):
    """Returns `findings` of this node; `offset`, `identity` and `accounts` to compare with the others'; the `jobs` that
    run there; and the roles whose `services`, which are the head's, it has.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        name = (task_vars or {})["inventory_hostname"]
        arguments = {**self._task.args, "memory": float(self._task.args["memory"])}
        arguments["ssh"] = boolean(arguments["ssh"])
        asked = Asked(name=name, **arguments)
        found: list[Finding] = []
        before = time.time()
        answer, said = self._ask(asked, become=True)
        if not answer.complete:
            # Without sudo, to know whether it is sudo that fails, and to say the rest as well.
            before = time.time()
            refused = said
            if reached(said):
                answer, said = self._ask(asked, become=False)
            table, said = (NO_ROOT, refused) if answer.complete else (UNREACHABLE, said)
            found.append(error(self._explain(table, said)))
        elif answer.sections["user"] != "0":
            found.append(error("Ansible does not become root there: take ansible_become... out of the inventory"))
        after = time.time()
        result.update(changed=False, identity={}, offset=0.0, accounts={}, jobs=[], services=[])
        if answer.complete:
            found += findings(answer, asked)
            result.update(identity=answer.identity, offset=offset(before, answer.time, after))
            result.update(jobs=running(answer), services=answer.lines("services"))
            result.update(accounts={account: account in answer.lines("accounts") for account in asked.accounts})
        where = f"{name} ({self._play_context.remote_addr})"
        result["findings"] = [finding.of(where) for finding in found]
        return result

    def _ask(self, asked: Asked, *, become: bool) -> tuple[Answer, str]:
        """Return the answer and what was said beside it; nothing of an answer where the node was not reached."""
        try:
            done = self._low_level_execute_command(asked.command(), sudoable=become)
        except AnsibleError as error:
            return Answer(""), str(error)
        return Answer(done["stdout"]), done["stderr"] or done["stdout"]

    def _explain(self, table: tuple[tuple[str, str, str], ...], said: str) -> str:
        context = self._play_context
        return explain(table, said, context.remote_user or "", context.remote_addr, int(context.port or 22))
