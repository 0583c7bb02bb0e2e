"""Which nodes a job gets, and how many it needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def chosen_nodes(nnodes: Any, group: str, groups: Mapping[str, list[str]]) -> list[str]:
    """Return the first `nnodes` hosts of the group; ValueError with the fix where there are not so many."""
    if group not in groups:
        known = ", ".join(sorted(set(groups) - {"all", "ungrouped"}))
        raise ValueError(f"group={group}: there is no such group in the inventory; it has {known}")
    hosts = groups[group]
    if strangers := [host for host in hosts if host not in groups["cluster"]]:
        raise ValueError(f"group={group}: {', '.join(strangers)} is no member of the group cluster")
    text = str(nnodes).strip()
    if not re.fullmatch(r"[0-9]+", text) or not 1 <= int(text) <= len(hosts):
        raise ValueError(
            f"nnodes={text}: write a whole number from 1 to {len(hosts)}, "
            f"the hosts of group {group} ({', '.join(hosts)})"
        )
    return hosts[: int(text)]


def fewest(nnodes_min: Any, nodes: list[str]) -> int:
    """Return how many nodes the job goes on with when others are lost; ValueError with the fix."""
    text = str(nnodes_min).strip()
    if not re.fullmatch(r"[0-9]+", text) or not 1 <= int(text) <= len(nodes):
        raise ValueError(
            f"nnodes_min={text}: write a whole number from 1 to {len(nodes)} (nnodes), the fewest nodes to go on with "
            "when others are lost"
        )
    return int(text)


def grace(node_grace: Any) -> int:
    """Return how many seconds a lost node is waited for; ValueError with the fix."""
    text = str(node_grace).strip()
    if not re.fullmatch(r"[0-9]+", text) or not 1 <= int(text) <= 86400:
        raise ValueError(f"node_grace={text}: write the seconds to wait for a node that is lost, from 1 to 86400")
    return int(text)


def processes(nodes: list[str], variables: Mapping[str, Mapping[str, Any]]) -> None:
    """Check nproc_per_node of each node that has one."""
    for name in nodes:
        value = variables[name].get("nproc_per_node", 1)
        if not re.fullmatch(r"[1-9][0-9]*", str(value)):
            raise ValueError(f"{name}: nproc_per_node is '{value}'; write the number of processes, 1 or more")
