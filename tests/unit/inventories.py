"""Inventories for the tests of preflight, read as ansible-playbook reads them, many in one process."""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager
from paths import ROOT

sys.path.insert(0, str(ROOT / "roles/preflight"))

from inventory_rules import findings
from inventory_rules.inventory import Inventory

init_plugin_loader()

GOOD = """\
all:
  children:
    cluster:
      vars:
        minos_inventory_ready: true
        ansible_user: you
        cluster_gateway: 192.168.1.1
        cluster_prefix: 24
        cluster_nameservers: [192.168.1.1]
      children:
        head:
          hosts:
            node1:
        gpu_nodes:
          hosts:
            node1:
              ansible_host: 192.168.1.100
            node2:
              ansible_host: 192.168.1.101
            node3:
              ansible_host: 192.168.1.102
"""


def changed(*changes: tuple[str, str]) -> str:
    """Return the good inventory with pieces of its text replaced, each of which must be there once."""
    text = GOOD
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def write(folder: Path, text: str, name: str = "hosts.yml") -> Path:
    """Put an inventory into a folder, with the shared variables beside it as inventory/ has them."""
    shared = folder / "group_vars"
    if not shared.exists():
        shared.symlink_to(ROOT / "inventory/group_vars")
    (folder / name).write_text(text)
    return folder / name


def found(source: Path) -> list[str]:
    """Return what is wrong with an inventory."""
    loader = DataLoader()
    manager = InventoryManager(loader=loader, sources=[str(source)])
    variables = VariableManager(loader=loader, inventory=manager)
    hostvars = HostVars(manager, variables, loader)
    return findings(Inventory(hostvars, manager.get_groups_dict(), [str(source)], loader))
