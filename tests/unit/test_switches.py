"""true and false as a text, which is what an INI file and -e hand over: an 'off' that counts as on costs an address."""

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from paths import ROOT
from rendering import SHARED, evaluated, shared, templar

HOSTS, GROUPS = {"node1": "10.0.0.1"}, {"head": ["node1"]}
VALUES = {"text": ("true", "false"), "yes and no": ("yes", "no"), "itself": (True, False)}


@pytest.fixture(params=VALUES.values(), ids=VALUES)
def both(request):
    return request.param


def conditions():
    """Those of the roles in site.yml that are left out by a switch."""
    plays = yaml.safe_load((ROOT / "site.yml").read_text())
    return {role["role"]: role["when"] for play in plays for role in play.get("roles", []) if "when" in role}


@pytest.mark.parametrize("role", conditions())
def test_which_roles_site_runs(role, both):
    on, off = both

    def runs(**switches):
        told = Templar(DataLoader(), {"static_ip": on, "local_only": off} | switches)
        return told.evaluate_conditional(trust_as_template(conditions()[role]))

    assert runs() is True
    assert runs(local_only=on) is False
    assert runs(static_ip=off) is (role != "netplan")


def test_what_the_shared_variables_make_of_them(both):
    on, off = both
    alone = {"local_only": on}
    assert "chrony" in shared("packages_names", "node1", HOSTS, GROUPS, local_only=off)
    assert "chrony" not in shared("packages_names", "node1", HOSTS, GROUPS, **alone)
    assert shared("shared_dir_create", "node1", HOSTS, GROUPS, **alone) is True
    assert shared("shared_dir_create", "node1", HOSTS, GROUPS, local_only=off) is False
    assert shared("preflight_nodes_ssh", "node1", HOSTS, GROUPS, **alone) is False
    assert shared("preflight_nodes_ssh", "node1", HOSTS, GROUPS, local_only=off) is True
    assert "firewall" in shared("reset_skipped", "node1", HOSTS, GROUPS, **alone)
    assert shared("reset_skipped", "node1", HOSTS, GROUPS, local_only=off) == []
    assert shared("tensorboard_ssh", "node1", HOSTS, GROUPS, **alone) == ""
    doors = {"tensorboard_port": 6006, "tensorboard_from": []}
    assert shared("firewall_doors", "node1", HOSTS, GROUPS, **doors, tensorboard_enabled=on) != []
    assert shared("firewall_doors", "node1", HOSTS, GROUPS, **doors, tensorboard_enabled=off) == []


def test_only_those_whose_address_is_set_are_asked_about_large_packets(both):
    on, off = both
    hostvars = {
        name: {"static_ip": switch, "cluster_mtu": 0, "cluster_ip": name}
        for name, switch in {"node1": on, "node2": on, "node3": off}.items()
    }
    told = {"groups": {"cluster": list(hostvars)}, "hostvars": hostvars, "inventory_hostname": "node1"}
    peers = Templar(DataLoader(), told | {"cluster_mtu": 0}).template(trust_as_template(SHARED["netplan_peers"]))
    assert peers == ["node2"]


def test_the_index_is_left_alone_offline_only(both):
    on, off = both
    settings = {"python_env_index_url": "", "python_env_extra_index_urls": [], "python_env_find_links": []}
    settings |= {"python_env_ca_bundle": "", "python_env_packages_path": "", "inventory_hostname": "node1"}
    settings |= {"python_env_fetcher": "node1"}
    outside = [
        evaluated("python_env", "__python_env_outside", **settings, python_env_offline=value)["PIP_NO_INDEX"]
        for value in (on, off)
    ]
    assert outside == ["1", ""]
    told = templar("python_env", **settings, python_env_offline=off, ansible_check_mode=False)
    tasks = yaml.safe_load((ROOT / "roles/python_env/tasks/sync.yml").read_text())
    (command,) = (task["ansible.builtin.shell"]["cmd"] for task in tasks if "pip sync" in str(task))
    assert "--no-index" not in told.template(trust_as_template(command))
