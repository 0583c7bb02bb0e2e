"""Every inventory that ships gets the shared variables, whether it is a file or a folder."""

import json
import subprocess

import pytest
from paths import ROOT

INVENTORIES = sorted(path for path in (ROOT / "inventory").iterdir() if path.name != "group_vars")
HOSTS = """\
all:
  vars: {cluster_gateway: 10.0.0.254}
  children: {cluster: {vars: {cluster_prefix: 20}, hosts: {one: {ansible_host: 10.0.0.1, cluster_uid: 3000}}}}
"""


def variables(inventory):
    command = ["ansible-inventory", "-i", inventory, "--host", "one"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: path.name)
def test_gets_the_shared_variables(inventory, tmp_path):
    """Tried with a host of ours where the hosts come from a script that needs a lab."""
    if inventory.is_dir():
        (tmp_path / "group_vars").symlink_to((inventory / "group_vars").resolve(strict=True))
        (tmp_path / "hosts.yml").write_text(HOSTS)
        found = variables(tmp_path)
    else:
        command = ["ansible-inventory", "-i", inventory, "--host", "node1"]
        found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert found["minos_shared_vars"] is True


def test_the_inventory_wins_over_the_shared_variables(tmp_path):
    """Of all, of a group or of a host: the shared ones are defaults."""
    (tmp_path / "group_vars").symlink_to(ROOT / "inventory/group_vars")
    (tmp_path / "hosts.yml").write_text(HOSTS)
    found = variables(tmp_path)
    assert (found["cluster_gateway"], found["cluster_prefix"], found["cluster_uid"]) == (
        "10.0.0.254",
        20,
        3000,
    )


def test_the_default_is_one_file():
    """The folder would merge the owner's machines with the lab's."""
    assert "inventory = inventory/hosts.yml" in (ROOT / "ansible.cfg").read_text()
