"""Choose the driver of one node from what files/look.sh printed there and on its peers; nothing is changed."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from driver_choice import Node, Plan, Wish, choose, cuda_of, read
from driver_choice.table import nccl_settings


class ActionModule(ActionBase):
    """Arguments: look and peers (outputs), manage, lock (a path here), wish.

    Returns `cards`, which is empty where no driver is needed, `plan`, and what the steps after it ask of the node.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        name = (task_vars or {})["inventory_hostname"]
        try:
            result.update(changed=False, **self._choice())
        except (ValueError, OSError) as error:
            raise AnsibleActionFail(f"{name}: {error}") from None
        return result

    def _choice(self) -> dict[str, Any]:
        arguments = self._task.args
        node = read(arguments["look"])
        wish = arguments["wish"]
        cuda = str(wish["cuda"]) or cuda_of(Path(arguments["lock"]).read_text())
        # 3001 without quotes is a number in YAML.
        cards = {str(card).lower(): name for card, name in wish["cards"].items()}
        wish = Wish(**{**wish, "cuda": cuda, "cards": cards})
        # A container sees the cards of its host, whether it was given them or not.
        cards = node.cards if not node.container or node.devices or not wish.load else ()
        about = {"jobs": node.jobs, "ours": node.ours, "driver": node.driver, "cuda": wish.cuda}
        if not cards or not wish.cuda:
            return {**about, "cards": [], "unused": [slot for slot, _ in cards], "plan": {}}
        plan = self._plan(node, wish)
        return {**about, "cards": [slot for slot, _ in cards], "unused": [], "plan": dataclasses.asdict(plan)}

    def _plan(self, node: Node, wish: Wish) -> Plan:
        if not self._task.args["manage"]:
            return Plan(keep=True, branch=0, environment=nccl_settings([card for _, card in node.cards]))
        peers = [card for look in self._task.args["peers"] for _, card in read(look).cards]
        return choose(node, wish, peers)
