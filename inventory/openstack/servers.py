#!/usr/bin/env python3
"""The servers of your cloud, as servers.openstack.yml asks for them with Ansible's own OpenStack plugin.

Ansible does not read that file itself: it would tell of wrong credentials in thirty lines about every plugin it has.
Here a failure becomes the variable `inventory_error`, which the first play of every playbook shows.
"""

import json
import logging
import os
import re
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE.parents[1] / ".venv/bin/python"
CONFIG = HERE / "servers.openstack.yml"
MEND = "source your openrc.sh again, or correct clouds.yaml"


def servers() -> dict:
    """What the cloud has, in the form of Ansible's inventory scripts."""
    from ansible.inventory.data import InventoryData
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import init_plugin_loader, inventory_loader

    init_plugin_loader()
    found = InventoryData()
    inventory_loader.get("openstack.cloud.openstack").parse(found, DataLoader(), str(CONFIG))
    groups = {name: {"hosts": [host.name for host in group.hosts]} for name, group in found.groups.items()}
    members = {name for group in ("head", "gpu_nodes") for name in groups.get(group, {"hosts": []})["hosts"]}
    if not members:
        names = ", ".join(found.hosts) or "none at all"
        raise LookupError(f"none of its servers ({names}) is head or gpu; {CONFIG.name} says what makes them so")
    return {
        "_meta": {"hostvars": {name: dict(found.hosts[name].vars) for name in members}},
        **{name: groups[name] for name in ("head", "gpu_nodes") if name in groups},
    }


def main() -> None:
    try:
        import ansible  # noqa: F401
    except ImportError:  # started by a Python that is not Ansible's
        os.execv(VENV, [str(VENV), *sys.argv])
    warnings.simplefilter("ignore")
    logging.disable()  # the library says on the screen what comes back as an error
    try:
        answer = servers()
    except Exception as error:
        text = " ".join(re.split(r": HTTPS?ConnectionPool", str(error))[0].split()).rstrip(".: ")
        mend = "type make openstack" if "openstacksdk" in text else MEND
        answer = {"_meta": {"hostvars": {}}, "all": {"vars": {"inventory_error": f"{HERE.name}: {text}: {mend}"}}}
    json.dump(answer, sys.stdout, default=str)


main()
