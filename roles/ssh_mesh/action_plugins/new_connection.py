"""Open a second SSH connection to the node, by key, beside the one that is open, and say how that went.

It is made as Ansible makes its own (user, port, key, proxy and host key options of the inventory), but shares no
control socket with it and offers no password: whether it gets in is what a person at this machine would meet next.
Succeeds always; `came_in` and `said` are the result. Where no SSH is used there is nothing to lose, and it comes in.
"""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

ALONE = "-o ControlMaster=no -o ControlPath=none -o BatchMode=yes"


class ActionModule(ActionBase):
    """`tries`: how often, a second apart; sshd is away for a moment while it reads its configuration again."""

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        result.update(changed=False, came_in=True, said="")
        if self._connection.transport != "ssh":
            return result
        for left in reversed(range(int(self._task.args.get("tries", 1)))):
            result.update(self._try(task_vars or {}))
            if result["came_in"] or not left:
                break
            time.sleep(1)
        return result

    def _try(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        context = self._play_context.copy()
        context.password = None
        connection = self._shared_loader_obj.connection_loader.get("ssh", context)
        # Of an option that is there twice ssh takes the first; another file or a way through another machine stays.
        given = self._templar.template(task_vars.get("ansible_ssh_args", ""))
        connection.set_options(var_options=task_vars, direct={"ssh_args": f"{ALONE} {given}", "password": None})
        try:
            code, _, error = connection.exec_command("true", sudoable=False)
        except AnsibleError as failure:
            return {"came_in": False, "said": str(failure).strip()}
        finally:
            connection.close()
        return {"came_in": code == 0, "said": error.decode(errors="replace").strip()}
