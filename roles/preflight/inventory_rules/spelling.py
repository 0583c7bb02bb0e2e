"""Names of variables: what is written is known, or is nobody's mistake.

Owners keep variables of their own in an inventory, so only two kinds of unknown names are mistakes: one that begins as
ours do, and one that is nearly one of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator

from .inventory import Inventory

# Misspelt, they leave a machine without an address or a login.
CONNECTION = ("ansible_host", "ansible_user", "ansible_port", "ansible_connection", "ansible_become")
SIMILAR = 0.85
# Ansible has many names of its own, and ansible_ssh_port is no mistake for ansible_port.
SIMILAR_OF_ANSIBLES = 0.9
# Short names, such as job, are like too many others.
LONG_ENOUGH = 8


def check(inventory: Inventory, known: Collection[str], prefixes: tuple[str, ...]) -> Iterator[str]:
    candidates = [name for name in known if len(name) >= LONG_ENOUGH and "_" in name]
    for host in inventory.members:
        for name in inventory.written(host):
            if name in known or name in CONNECTION:
                continue
            near = nearest(name, candidates)
            if near and near not in inventory.written(host):
                yield f"{inventory.at(host, name)}{name}: nothing has this name; did you mean {near}?"
            elif near or name.startswith(prefixes):
                yield (
                    f"{inventory.at(host, name)}{name}: nothing has this name: take it out, or see "
                    f"inventory/group_vars/all.yml for what there is{f' ({near}?)' if near else ''}"
                )


def nearest(name: str, candidates: Collection[str]) -> str:
    """Return the known name that this one is nearly, capitals and hyphens aside; empty where there is none."""
    of_ansible = name.startswith("ansible")
    among, similar = (CONNECTION, SIMILAR_OF_ANSIBLES) if of_ansible else (candidates, SIMILAR)
    near = difflib.get_close_matches(name.lower().replace("-", "_"), among, 1, similar)
    return near[0] if near else ""
