"""The groups that the plays name exist and hold what they should."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from ansible.module_utils.parsing.convert_bool import boolean

from .inventory import Inventory


def check(inventory: Inventory) -> Iterator[str]:
    groups, where = inventory.groups, inventory.sources
    heads = groups.get("head", [])
    if len(heads) != 1:
        listed = f" ({', '.join(heads)})" if heads else ""
        yield (
            f"{where}: group head has {len(heads)} hosts{listed}: name exactly one machine there{meant('head', groups)}"
        )
    if not groups.get("gpu_nodes"):
        yield (
            f"{where}: group gpu_nodes is missing or empty: name the machines that train there"
            f"{meant('gpu_nodes', groups)}"
        )
    servers = groups.get("nfs_server", [])
    if len(servers) > 1:
        listed = ", ".join(servers)
        yield f"{where}: group nfs_server has {len(servers)} hosts ({listed}): name one machine there, or none"
    for name in dict.fromkeys([*heads, *groups.get("gpu_nodes", []), *servers]):
        if name not in inventory.members:
            yield (
                f"{inventory.at_host(name)}is not in group cluster: make head and gpu_nodes children of cluster"
                f"{', and nfs_server, too' if name in servers else ''}"
            )
    alone = [host for host, value in inventory.each("local_only") if boolean(value, strict=False)]
    if alone and len(inventory.members) > 1:
        yield (
            f"{inventory.at(alone[0], 'local_only')}local_only is for one machine alone, and cluster has "
            f"{len(inventory.members)}: take it out, or take inventory/local"
        )
    source = inventory.get(inventory.members[0], "cluster_nfs_source") if inventory.members else ""
    if servers and source:
        yield (
            f"{inventory.at(inventory.members[0], 'cluster_nfs_source')}cluster_nfs_source is '{source}', but "
            f"{servers[0]} is in group nfs_server and exports the shared directory itself: take one of them out"
        )


def meant(name: str, groups: object) -> str:
    """Point to a group whose name is nearly the one that is missing."""
    near = difflib.get_close_matches(name, set(groups) - {"all", "ungrouped", "cluster", "head", "gpu_nodes"}, 1, 0.75)
    return f" (there is a group {near[0]}: call it {name})" if near else ""
