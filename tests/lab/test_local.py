"""inventory/local: the machine one sits at, alone. A fresh node of a lab of its own plays that machine: Minos is copied
there, installed there with make, and everything is typed there, as root.

What containers cannot be is a desktop with a card and a screen. The tests build on each other and run in their order.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess

import pytest
import yaml

from tests.fingerprint import differences, take
from tests.labs import ROOT, Lab, changed

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

LAB = Lab("here")
LAB_EXEC = ["python3", "-B", "-m", "lab", "exec"]
HOME = "/root/minos"
TOOLS = "apt-get -qq update && apt-get -qq install --yes --no-install-recommends git make openssh-server ufw >/dev/null"
# Of what the lab says of its nodes, that by which packages come; a machine with a name server and an index needs none.
PACKAGES = re.compile(r"python_env_|cluster_proxy_env$")


def here(command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Type a command in the folder of Minos there."""
    typed = f"cd {HOME} && export PATH=$PWD/.venv/bin:$PATH ANSIBLE_NOCOLOR=1 && set -a && . /root/proxy && {command}"
    return LAB.command("exec", "node1", "bash", "-c", typed, check=check)


def playbook(name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return here(shlex.join(["ansible-playbook", "-i", "inventory/local", name, *arguments]), check=check)


def copy_of_the_project() -> None:
    """What git knows of, with what is not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = [name for name in listed.stdout.decode().split("\0") if (ROOT / name).exists() and name]
    packed = subprocess.run(["tar", "c", *names], cwd=ROOT, capture_output=True, check=True)
    command = [*LAB_EXEC, "node1", "sh", "-c", f"mkdir -p {HOME} && tar x -C {HOME}"]
    subprocess.run(command, cwd=ROOT, env=LAB.environment, input=packed.stdout, check=True)


def settings_for_packages() -> None:
    """The lab's way to packages, as its owner would have it on such a machine: pip's file, and host_vars."""
    told = json.loads(LAB.command("inventory").stdout)["all"]["vars"]
    chosen = {name: value for name, value in told.items() if PACKAGES.match(name)}
    lists = {"find-links": "python_env_find_links", "extra-index-url": "python_env_extra_index_urls"}
    lines = [f"{key} = {' '.join(told[name])}" for key, name in lists.items() if told.get(name)]
    single = {"index-url": "python_env_index_url", "cert": "python_env_ca_bundle"}
    lines += [f"{key} = {told[name]}" for key, name in single.items() if told.get(name)]
    files = {
        "/etc/pip.conf": "\n".join(["[global]", *lines, ""]),
        "/root/proxy": "".join(f"{name}='{value}'\n" for name, value in told["cluster_proxy_env"].items()),
        f"{HOME}/inventory/local/host_vars/here.yml": yaml.safe_dump(chosen | {"omp_num_threads": 1}),
    }
    for name, text in files.items():
        LAB.inside("node1", f"mkdir -p $(dirname {name}) && cat >{name} <<'END'\n{text}END\n")


def fingerprint() -> dict:
    """Of the machine, without Minos itself and what its tools have kept for the next time."""
    without = (HOME, "/root/.cache", "/root/.local", "/root/.ansible")
    return take(lambda *argv: LAB.command("exec", "node1", *argv).stdout, without)


@pytest.fixture(scope="module")
def before():
    """The machine as it was, with Minos in a folder and nothing of it installed."""
    LAB.command("down")
    LAB.command("up", "-n", "1")
    LAB.inside("node1", TOOLS)
    copy_of_the_project()
    settings_for_packages()
    here("make venv-dev")
    yield fingerprint()
    LAB.command("down")


OWN = (
    "ip -oneline address",
    "ip route",
    "sshd -T",
    "hostname",
    "cat /etc/hosts",
    "ufw status",
    "systemctl is-enabled sleep.target",
)


@pytest.fixture(scope="module")
def own(before):
    """What is the owner's and stays so: address, route, SSH, name, firewall, sleep."""
    return {command: LAB.inside("node1", f"{command} 2>&1 || true") for command in OWN}


def test_site_makes_it_a_machine_that_trains(own):
    playbook("site.yml")
    assert {command: LAB.inside("node1", f"{command} 2>&1 || true") for command in OWN} == own


def test_a_second_run_changes_nothing(own):
    """Nor does check mode say that it would; of the network's roles test_cluster.py asks that."""
    planned = playbook("site.yml", "--check", "--diff")
    assert set(changed(planned).values()) == {0} and "@@" not in planned.stdout
    assert set(changed(playbook("site.yml")).values()) == {0}


def test_it_trains(own):
    done = playbook("train.yml", "-e", "nnodes=1", "-e", "steps=20", "-e", "job=alone")
    assert "Job alone: done at step 20 of 20" in done.stdout


FAILING = {
    "before the start": ("data_train=/srv/minos/nothing.txt data_heldout=", "/srv/minos/nothing.txt"),
    "on the node": ("backend=nccl", "likely: the NVIDIA driver is missing"),
}


@pytest.mark.parametrize(("setting", "reason"), FAILING.values(), ids=FAILING)
def test_a_job_that_cannot_work_fails_with_the_reason(setting, reason, own):
    job = f"bad-{setting.split('=')[0]}".replace("_", "-")
    done = playbook("train.yml", "-e", f"nnodes=1 job={job} {setting}", check=False)
    assert done.returncode != 0
    state = json.loads(LAB.inside("node1", f"cat /srv/minos/jobs/{job}/state.json"))
    assert state["state"] == "failed"
    assert reason in done.stdout + done.stderr


def test_the_verbs_answer_there(own):
    assert "alone" in playbook("playbooks/status.yml").stdout
    playbook("playbooks/export.yml", "-e", "job=alone", "-e", "to=/root/got")
    assert LAB.inside("node1", "ls /root/got")


def test_the_node_is_what_the_roles_promised(own):
    done = here("make nodes INVENTORY=inventory/local", check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 15


def test_reset_gives_it_back(before, own):
    LAB.inside("node1", "rm -r /root/got")
    playbook("playbooks/reset.yml", "-e", "sure=true", "-e", "remove_data=true", "-e", "remove_data_really=/srv/minos")
    assert differences(before, fingerprint()) == []
    assert {command: LAB.inside("node1", f"{command} 2>&1 || true") for command in OWN} == own
