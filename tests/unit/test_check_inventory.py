"""Bad inventories: each is refused with one line that says what, where and the fix."""

import copy

import pytest
from paths import action_plugin

findings = action_plugin("preflight", "check_inventory").findings


def good():
    shared = {
        "minos_shared_vars": True,
        "minos_inventory_ready": True,
        "cluster_gateway": "192.168.1.1",
        "cluster_prefix": 24,
        "cluster_shared_path": "/srv/minos",
        "rendezvous_port": 29500,
    }
    names = ["node1", "node2", "node3"]
    variables = {name: {**shared, "cluster_ip": f"192.168.1.{100 + i}"} for i, name in enumerate(names)}
    return {"head": ["node1"], "gpu_nodes": names, "cluster": names}, variables


def everywhere(key, value):
    def change(groups, variables):
        for host in variables.values():
            host[key] = value

    return change


def address(name, value):
    def change(groups, variables):
        variables[name]["cluster_ip"] = value

    return change


def group(name, hosts):
    def change(groups, variables):
        groups[name] = hosts

    return change


BAD = {
    "not edited": (everywhere("minos_inventory_ready", False), "set minos_inventory_ready: true"),
    "no group cluster": (group("cluster", []), "no hosts in group cluster"),
    "no head": (group("head", []), "group head has 0 hosts"),
    "two heads": (group("head", ["node1", "node2"]), "group head has 2 hosts"),
    "nobody trains": (group("gpu_nodes", []), "gpu_nodes is missing or empty"),
    "head outside": (group("head", ["other"]), "other is not in group cluster"),
    "mistyped": (address("node2", "192.168.1.1O1"), "node2: cluster_ip (or ansible_host) is '192.168.1.1O1'"),
    "a name": (address("node2", "node2.local"), "write an IPv4 address"),
    "twice": (address("node3", "192.168.1.101"), "node3: address 192.168.1.101 is already that of node2"),
    "outside": (address("node3", "192.168.2.102"), "node3: address 192.168.2.102 is outside 192.168.1.0/24"),
    "gateway": (everywhere("cluster_gateway", "192.168.1"), "cluster_gateway is '192.168.1'"),
    "prefix": (everywhere("cluster_prefix", "255.255.255.0"), "cluster_prefix is '255.255.255.0'"),
    "relative share": (everywhere("cluster_shared_path", "srv"), "cluster_shared_path is 'srv'"),
    "root share": (everywhere("cluster_shared_path", "/"), "an absolute path other than /"),
    "port": (everywhere("rendezvous_port", "x"), "rendezvous_port is 'x'"),
}


def test_a_good_inventory_has_no_findings():
    assert findings(*good(), "hosts.yml") == []


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_one_line_for_one_mistake(change, message):
    groups, variables = copy.deepcopy(good())
    change(groups, variables)
    wrong = findings(groups, variables, "hosts.yml")
    assert len(wrong) == 1
    assert message in wrong[0] and "\n" not in wrong[0]


def test_three_mistakes_give_three_lines():
    groups, variables = good()
    for change in (
        address("node2", "x"),
        everywhere("rendezvous_port", 0),
        everywhere("cluster_shared_path", "/"),
    ):
        change(groups, variables)
    assert len(findings(groups, variables, "hosts.yml")) == 3


def test_an_inventory_without_the_shared_variables():
    groups, variables = good()
    everywhere("minos_shared_vars", True)(groups, variables)
    for host in variables.values():
        del host["minos_shared_vars"]
    assert "shared variables were not loaded" in findings(groups, variables, "/tmp/mine.yml")[0]
