"""Checks of real nodes, read from the real thing: run them against any inventory.

    pytest tests/nodes --ansible-inventory=inventory/lab

Every test runs once for each host of the group `cluster`, as root through sudo.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import testinfra
from testinfra.backend.ssh import SshBackend
from testinfra.utils.ansible_runner import AnsibleRunner

ROOT = Path(__file__).parents[2]

# What the roles were told, resolved by Ansible itself: name in the tests -> expression.
FACTS = {
    "local_only": "local_only",
    "address": "cluster_ip",
    "prefix": "cluster_prefix",
    "members": "cluster_members",
    "head": "cluster_head",
    "head_address": "cluster_head_ip",
    "user": "cluster_user",
    "uid": "cluster_uid",
    "gid": "cluster_gid",
    "state_path": "cluster_state_path",
    "shared_path": "cluster_shared_path",
    "env_path": "cluster_env_path",
    "store_address": "cluster_store_ip",
    "store_port": "rendezvous_port",
    "ssh_from": "firewall_ssh_from",
    "tensorboard": (
        "{'enabled': tensorboard_enabled, 'address': hostvars[cluster_head].tensorboard_address, "
        "'port': tensorboard_port, 'from': tensorboard_from}"
    ),
    "nfs_server": "cluster_nfs_server",
    "nfs_source": "nfs_client_source",
    "variant": "python_env_variant",
    "ssh_port": "ansible_port | default(22)",
    "outsider": "outsider_command | default([])",
}


def pytest_configure(config: pytest.Config) -> None:
    """Fill in what is always the same, so that the command stays short."""
    config.option.ansible_inventory = config.option.ansible_inventory or "inventory/hosts.yml"
    config.option.hosts = config.option.hosts or "ansible://cluster"
    config.option.sudo = True


@pytest.fixture(scope="session")
def inventory(request: pytest.FixtureRequest) -> str:
    return request.config.option.ansible_inventory


@pytest.fixture(scope="session")
def cluster(inventory: str) -> dict[str, SimpleNamespace]:
    """Map each member to what the roles were told about it."""
    expression = "{{ {" + ", ".join(f"'{name}': {value}" for name, value in FACTS.items()) + "} }}"
    command = [
        "ansible",
        "cluster",
        "-i",
        inventory,
        "-m",
        "ansible.builtin.debug",
        "-a",
        f"msg={json.dumps(expression)}",
    ]
    environment = os.environ | {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    results = json.loads(done.stdout)["plays"][0]["tasks"][0]["hosts"]
    return {name: SimpleNamespace(**result["msg"]) for name, result in results.items()}


@pytest.fixture(scope="session")
def nodes(cluster: dict[str, SimpleNamespace], inventory: str) -> dict[str, testinfra.host.Host]:
    """Map each member to a connection, for tests that compare nodes."""
    return {name: testinfra.get_host(f"ansible://{name}", ansible_inventory=inventory, sudo=True) for name in cluster}


@pytest.fixture(scope="session", autouse=True)
def one_login_each(
    cluster: dict[str, SimpleNamespace], inventory: str, request: pytest.FixtureRequest
) -> Iterator[None]:
    """All commands for a node share a connection: testinfra asks ssh for that, and tells it no place to keep it."""
    # Not pytest's folder, nor below TMPDIR: the path of a socket has to be short.
    with tempfile.TemporaryDirectory(prefix="minos-", dir="/tmp") as folder:
        given = {name: getattr(request.config.option, name) for name in ("ssh_config", "ssh_identity_file")}
        for name in cluster:
            node = AnsibleRunner.get_runner(inventory).get_host(name, **given)  # which keeps them
            if node and isinstance(node.backend, SshBackend):  # or it is this machine
                node.backend.controlpath = f"{folder}/{name}"
        yield
        for socket in Path(folder).iterdir():
            command = ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", socket.name]
            subprocess.run(command, capture_output=True, check=False)


@pytest.fixture(scope="session", autouse=True)
def sudo_needs_no_password(nodes: dict[str, testinfra.host.Host], one_login_each: None) -> None:
    """The checks have nobody to type one; a hundred errors would say so less clearly."""
    for name, node in nodes.items():
        if "sudo:" in (said := node.run("true").stderr):
            pytest.exit(f"{name}: {said.strip()} (the checks need sudo without a password: NOPASSWD in sudoers)", 2)


@pytest.fixture
def name(host: testinfra.host.Host) -> str:
    """Name of the node under test, as the inventory has it."""
    return host.backend.get_pytest_id().removeprefix("ansible://")


@pytest.fixture
def told(cluster: dict[str, SimpleNamespace], name: str) -> SimpleNamespace:
    """What the roles were told about the node under test."""
    return cluster[name]


# What site.yml leaves to the owner of a machine that is alone.
OWNERS = {"test_firewall", "test_host_tuning", "test_network", "test_nfs", "test_ssh_mesh"}


@pytest.fixture(autouse=True)
def _ours(request: pytest.FixtureRequest, told: SimpleNamespace) -> None:
    if told.local_only and request.module.__name__.rpartition(".")[2] in OWNERS:
        pytest.skip("local_only: left to the machine's owner")
