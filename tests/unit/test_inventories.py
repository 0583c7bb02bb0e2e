"""Every inventory that ships gets the shared variables, whether it is a file or a folder."""

import json
import subprocess

import pytest
import yaml
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


def test_the_machine_alone_is_refused_nothing_and_keeps_what_is_its_owners():
    """inventory/local as it ships: nothing to edit, and no package for what site.yml leaves alone there."""
    inventory = ["-i", "inventory/local"]
    done = subprocess.run(
        ["ansible-playbook", *inventory, "playbooks/preflight.yml"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    fields = "[packages_names, cluster_store_ip, rendezvous_members, shared_dir_create, nfs_client_source]"
    command = [
        "ansible",
        *inventory,
        "cluster",
        "-m",
        "ansible.builtin.debug",
        "-o",
        "-a",
        f"msg={{{{ {fields} | to_json }}}}",
    ]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    answer = json.loads(shown.partition(" => ")[2])["msg"]
    names, *rest = answer if isinstance(answer, list) else json.loads(answer)
    assert names == ["python3-venv", "g++", "python3-dev"]
    assert rest == ["127.0.0.1", [], True, ""]
    site = yaml.safe_load((ROOT / "site.yml").read_text())
    roles = {role["role"]: str(role.get("when", "")) for play in site for role in play.get("roles", [])}
    left = {name for name, when in roles.items() if "not local_only" in when}
    assert left == {"netplan", "cluster_hosts", "host_tuning", "ssh_mesh", "firewall", "nfs_server", "nfs_client"}
