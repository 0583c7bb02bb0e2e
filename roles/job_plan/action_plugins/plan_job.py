"""Turn what the user asked for into a plan of the job, or into one message; no node is contacted."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "roles/job_plan"), str(ROOT / "roles/preflight")]

from inventory_rules.options import names_in_files, owners  # noqa: E402  (found through the line above)
from job_planning.archives import archive, training_package  # noqa: E402
from job_planning.nodes import chosen_nodes, fewest, grace, processes  # noqa: E402
from job_planning.options import known_names  # noqa: E402
from job_planning.own import own  # noqa: E402
from job_planning.trained import trained  # noqa: E402


def plan(
    arguments: Mapping[str, Any], given: Mapping[str, Any], task_vars: Mapping[str, Any], typed: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the plan: nodes, config, code and data of the job. ValueError: one line that says what to write.

    `given` are the variables of `-e` on the command line, `typed` each -e as it was typed.
    """
    nodes = chosen_nodes(arguments["nnodes"], arguments["group"], task_vars["groups"])
    processes(nodes, task_vars["hostvars"])
    cluster = task_vars["hostvars"][nodes[0]]
    work = own(arguments, given, cluster, typed) if arguments["script"] else trained(arguments, given, cluster)
    job = work["job"]
    folder = f"{cluster['cluster_state_path']}/jobs/{job}"
    file, digest = archive("code", training_package())
    code = {"archive": str(file), "path": f"{folder}/code-{digest}"}
    return {
        **work,
        "nodes": nodes,
        "nnodes_min": fewest(arguments["nnodes_min"], nodes),
        "node_grace": grace(arguments["node_grace"]),
        # Two people may start it in the same second.
        "run_id": f"{job}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}",
        "folder": folder,
        "shared": f"{cluster['cluster_shared_path']}/jobs/{job}",
        "code": code,
        "archives": [code, *work["archives"]],
    }


class ActionModule(ActionBase):
    """Arguments: nnodes, nnodes_min, node_grace, group, config, job, script, script_dir, script_args, requirements, as
    given on the command line.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        given, typed = load_extra_vars(self._loader), context.CLIARGS.get("extra_vars", ())
        # A vault may hold names of its owner's, which the inventory refers to.
        theirs = owners(names_in_files(typed, self._loader), known_names())
        given = {name: value for name, value in given.items() if name not in theirs}
        try:
            result.update(changed=False, plan=plan(self._task.args, given, task_vars or {}, typed))
        except (ValueError, OSError) as error:
            raise AnsibleActionFail(str(error)) from None
        return result
