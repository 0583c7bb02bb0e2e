"""A node that is the machine one types on is known as such, also where it is reached over SSH."""

from __future__ import annotations

from pathlib import Path

import pytest
from inventories import init_plugin_loader  # noqa: F401 (the shared variable looks into files)
from rendering import evaluated, shared

IDS = ("/etc/machine-id", "/proc/sys/kernel/random/boot_id")
FOUND = [Path(file).read_text().strip() for file in IDS if Path(file).exists()]
HERE = dict(zip(("machine", "boot"), FOUND, strict=False))


def is_control(**variables: object) -> bool:
    return shared("cluster_is_control", "node1", {"node1": "10.0.0.1"}, {}, **variables)


@pytest.mark.skipif(len(HERE) < 2, reason="this machine has no id")
@pytest.mark.parametrize(
    ("identity", "here"),
    [
        (HERE | {"key": "AAAA"}, True),
        (HERE | {"boot": "another"}, False),  # a copy of this one's disk
        (HERE | {"machine": "another"}, False),  # a container here
        ({"boot": HERE.get("boot")}, False),
        ({}, False),
    ],
    ids=["itself", "a copy", "a container", "half an answer", "no answer"],
)
def test_the_machine_that_one_types_on_is_known_over_ssh_too(identity, here):
    assert is_control(__preflight_nodes_answer={"identity": identity}) is here
    assert is_control(__reset_ask_found={"identity": identity}) is here


def test_it_is_known_by_its_connection_as_before():
    assert is_control(ansible_connection="local") is True
    assert is_control() is False


@pytest.mark.parametrize("role", ["netplan", "nvidia"])
def test_the_roles_go_by_either(role):
    for given, control in (({}, False), ({f"{role}_control": True}, True), ({"ansible_connection": "local"}, True)):
        assert bool(evaluated(role, f"__{role}_is_control", **given)) is control


def test_the_machine_that_one_types_on_is_restarted_by_nobody_else_and_asked_last():
    hosts = {name: {"inventory_hostname": name, "__nvidia_state": {"stdout": "restart: x"}} for name in "abcd"}
    hosts["a"]["nvidia_control"] = True
    hosts["b"]["ansible_connection"] = "local"
    hosts["c"]["nvidia_control"] = False
    order = evaluated("nvidia", "__nvidia_restarts", ansible_play_hosts=list("abcd"), hostvars=hosts, nvidia_head="c")
    assert order[:2] == ["d", "c"] and sorted(order[2:]) == ["a", "b"]
