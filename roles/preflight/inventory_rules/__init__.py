"""Everything that can be said about an inventory without asking a node, a theme per file.

A rule yields lines: where (file, line, machine), what (variable and value), and what to write instead.
"""

from __future__ import annotations

from ansible.module_utils.parsing.convert_bool import boolean

from . import addresses, groups, names, paths, plaintext, public, served, sources, spelling, values
from .inventory import Inventory, short
from .options import known_names, prefixes, role_options

NOT_READY = (
    "{source}: the inventory is still the one that ships: put your machines' names and addresses into it, "
    "then set minos_inventory_ready: true there"
)
NO_SHARED_VARS = (
    "{source}: the shared variables were not loaded: keep your inventory file in inventory/, "
    "or link inventory/group_vars beside it (ln -s ../group_vars)"
)
HIDDEN = (
    "{source}: the shared variables were not loaded: beside a folder {folder} Ansible does not look at all.yml: "
    "rename the folder, to {cluster}"
)
NO_HOSTS = "{source}: no hosts in group cluster: start from inventory/hosts.yml, which shows its shape"


def findings(inventory: Inventory) -> list[str]:
    """List what is wrong, a line each. Where it is not yet an inventory of ours, only that."""
    if not inventory.members:
        return [NO_HOSTS.format(source=inventory.sources)]
    first = inventory.members[0]
    if "minos_shared_vars" not in inventory.raw[first]:
        hiding = [folder / "group_vars/all" for folder in inventory.folders if (folder / "group_vars/all").is_dir()]
        if not hiding:
            return [NO_SHARED_VARS.format(source=inventory.sources)]
        folder, cluster = short(str(hiding[0])), short(str(hiding[0].with_name("cluster")))
        return [HIDDEN.format(source=inventory.sources, folder=folder, cluster=cluster)]
    # An INI file has no true, only the text.
    if boolean(inventory.get(first, "minos_inventory_ready") or False, strict=False) is not True:
        return [NOT_READY.format(source=inventory.sources)]
    options = role_options()
    return list(
        dict.fromkeys(
            [
                *groups.check(inventory),
                *names.check(inventory),
                *addresses.check(inventory),
                *public.check(inventory),
                *paths.check(inventory),
                *values.check(inventory, options),
                *sources.check(inventory),
                *served.check(inventory),
                *plaintext.check(inventory),
                *spelling.check(inventory, known_names(options), prefixes()),
            ]
        )
    )
