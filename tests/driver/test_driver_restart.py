"""Restarts for a new driver: one node after the other, the head last, never under a job. In a lab of its own.

No driver is loaded here, as containers have no kernel of their own: that nodes need a restart is said to the role. The
restarts are real.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
LAB = "driverboot"
ENVIRONMENT = {**os.environ, "MINOS_LAB": LAB, "ANSIBLE_NOCOLOR": "1"}
NODES = ["node1", "node2", "node3"]
PLAYBOOK = """
- hosts: {hosts}
  become: true
  gather_facts: false
  any_errors_fatal: true
  tasks:
    - name: Say that they need one
      ansible.builtin.set_fact:
        __nvidia_state: {{stdout: "{{{{ (inventory_hostname in needy) | ternary(why, 'loaded') }}}}"}}
      vars: {{needy: {needy}, why: "restart: nouveau holds the card"}}
    - name: Restart
      ansible.builtin.include_role: {{name: nvidia, tasks_from: restarts}}
"""


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert not check or done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done


def lab(*arguments: str) -> str:
    return run(sys.executable, "-m", "lab", *arguments).stdout


def on(node: str, command: str) -> str:
    """Run a shell command as root inside a node, without SSH."""
    return lab("exec", node, "sh", "-c", command).strip()


def started() -> dict[str, int]:
    """When each node was started, by the one clock that they share."""
    show = "systemctl show --property=UserspaceTimestampMonotonic --value"
    return {node: int(on(node, show)) for node in NODES}


@pytest.fixture(scope="module", autouse=True)
def nodes():
    lab("down")
    lab("up", "-n", "3")
    yield
    lab("down")


@pytest.fixture
def restart(tmp_path):
    def play(needy, *arguments, hosts="cluster", inventory="inventory/lab"):
        file = tmp_path / "restart.yml"
        file.write_text(PLAYBOOK.format(hosts=hosts, needy=needy))
        environment = {"ANSIBLE_ROLES_PATH": str(ROOT / "roles")}
        command = ["ansible-playbook", "-i", inventory, str(file), *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=500
        )
        done.said = re.sub(r"\s+", " ", done.stdout + done.stderr)
        return done

    return play


def test_one_after_the_other_and_the_head_last(restart):
    before = started()
    done = restart(NODES)
    assert done.returncode == 0, done.said[-3000:]
    after = started()
    assert all(after[node] > before[node] for node in NODES)
    assert sorted(after, key=after.get) == ["node2", "node3", "node1"], "node1 is the head"


def test_only_what_needs_it(restart):
    before = started()
    assert restart(["node3"]).returncode == 0
    after = started()
    assert [node for node in NODES if after[node] != before[node]] == ["node3"]


def test_never_under_a_job_and_what_comes_after_waits(restart):
    on("node3", "systemd-run --unit=minos-train@demo.service sleep 600")
    before = started()
    done = restart(["node1", "node3"])
    assert done.returncode != 0
    assert (
        "node3 needs a restart (nouveau holds the card), but minos-train@demo.service runs there: stop it" in done.said
    )
    assert started() == before
    on("node3", "systemctl stop minos-train@demo.service")


def test_not_when_the_owner_does_it(restart):
    before = started()
    done = restart(["node2"], "-e", "nvidia_restart=false")
    assert "node2 needs a restart (nouveau holds the card), and nvidia_restart is false. Type there: sudo" in done.said
    assert started() == before


def test_never_the_machine_that_this_is_typed_on(restart, tmp_path):
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {hosts: {here: {ansible_connection: local, ansible_become: false}}}\n")
    done = restart(["here"], hosts="all", inventory=str(inventory))
    assert done.returncode != 0
    assert "and is the machine that you type on. Type there: sudo systemctl reboot, then run this again" in done.said
