"""Nodes that differ are named and the play ends, with real Pythons that differ; only that all are on this machine."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import venv
from types import SimpleNamespace

import pytest
import yaml
from paths import ROOT
from rendering import task

NODES = ("node1", "node2", "node3")
PLAY = [
    {"hosts": "all", "connection": "local", "gather_facts": False, "roles": ["parity"]},
    {
        "hosts": "all",
        "connection": "local",
        "gather_facts": False,
        "tasks": [{"ansible.builtin.debug": {"msg": "NEXT"}}],
    },
]


@pytest.fixture
def cluster(tmp_path):
    """Three environments, each with a package, the job's code and its config; `compare` runs the role on them."""
    hosts = {}
    for name in NODES:
        home = tmp_path / name
        venv.create(home / "env", symlinks=True)
        packages = next((home / "env/lib").glob("python3*/site-packages")) / "thing-1.0.dist-info"
        packages.mkdir()
        (packages / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        (packages / "RECORD").write_text("thing.py,sha256=abc,10\n")
        for file, text in (("job/training/run.py", "print()\n"), ("job/config.yaml", "lr: 1\n")):
            (home / file).parent.mkdir(parents=True, exist_ok=True)
            (home / file).write_text(text)
        hosts[name] = {"parity_python": f"{home}/env/bin/python", "parity_jobs_path": f"{home}/jobs"}
        hosts[name] |= {"parity_code": f"{home}/job", "parity_config": f"{home}/job/config.yaml"}

    def compare(*arguments: str) -> SimpleNamespace:
        inventory, playbook = tmp_path / "hosts.yml", tmp_path / "play.yml"
        inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
        playbook.write_text(yaml.safe_dump(PLAY))
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", inventory, playbook, *arguments],
            cwd=ROOT,
            env=os.environ | {"ANSIBLE_ROLES_PATH": str(ROOT / "roles"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "400"},
            capture_output=True,
            text=True,
            timeout=100,
        )
        return SimpleNamespace(code=done.returncode, said=done.stdout + done.stderr, went_on="NEXT" in done.stdout)

    return SimpleNamespace(home=tmp_path, compare=compare, hosts=hosts)


def test_equal_nodes_go_on(cluster):
    done = cluster.compare()
    assert done.code == 0, done.said
    assert done.went_on
    assert "node1, node2, node3: the same Python" in done.said
    assert "torch none, 1 packages, code, config" in done.said


def test_a_package_a_byte_and_a_config_are_each_named(cluster):
    metadata = next(cluster.home.glob("node2/env/lib/*/site-packages/thing-1.0.dist-info/METADATA"))
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    with (cluster.home / "node3/job/training/run.py").open("a") as code:
        code.write(" ")
    (cluster.home / "node3/job/config.yaml").write_text("lr: 2\n")
    done = cluster.compare()
    assert done.code != 0
    assert not done.went_on
    assert "node2, node3 do not run the same as node1: package thing, code run.py, config;" in done.said
    assert "package thing  1.0 " in done.said
    assert "remove the folder code-* of the job there" in done.said


def test_a_node_without_the_environment_is_named(cluster):
    (cluster.home / "node3/env/bin/python").unlink()
    done = cluster.compare()
    assert done.code != 0
    assert "node3 cannot say what it runs with (" in done.said
    assert "run site.yml" in done.said
    assert "node2 cannot" not in done.said


def test_a_job_that_is_nowhere_is_said(cluster):
    done = cluster.compare("-e", "parity_job=minos-test-nothing")
    assert done.code != 0
    assert "job=minos-test-nothing: no node has a job of that name" in done.said


@pytest.mark.parametrize("any_driver", [False, "false", True, "true"])
def test_drivers_may_differ_where_their_owner_wants_it(any_driver, monkeypatch):
    """What the nodes answer is made up: there is no driver here."""
    monkeypatch.syspath_prepend(str(ROOT / "roles/parity/action_plugins"))
    plugin = importlib.import_module("compare_nodes")
    facts = {"python": "3.11 CPython x86_64", "package torch": "2.13.0 ab"}
    answers = {
        name: {"rc": 0, "stdout": json.dumps(facts | {"driver": driver})}
        for name, driver in {"node1": "580.1", "node2": "570.2"}.items()
    }
    given = SimpleNamespace(args={"answers": answers, "job": "", "any_driver": any_driver}, async_val=0)
    monkeypatch.setattr(plugin.ActionBase, "run", lambda *_: {})
    action = object.__new__(plugin.ActionModule)
    action._task, said = given, []
    action._display = SimpleNamespace(display=lambda line, **_: said.append(line))
    result = action.run()
    assert result["failed"] is (any_driver in (False, "false"))
    if result["failed"]:
        assert "node2 does not run the same as node1: driver" in result["msg"]
    else:
        assert said == ["node1, node2: the same Python 3.11, torch 2.13.0, driver 570.2, driver 580.1, 1 packages"]


def test_what_is_sent_is_read_before_the_node_answers():
    """Ansible writes it when it gets to it: on a busy node the shell had ended by then, and that was the answer."""
    command = task(
        "parity",
        "main",
        "Ask the node what it runs with",
        parity_python="python3",
        parity_job="minos-test-nothing",
        parity_jobs_path="/nowhere",
        __parity_paths={"code": "", "config": ""},
    )
    with subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.PIPE, text=True) as shell:
        shell.stdin.write("#" * 2**20)  # more than a pipe holds, so that who has ended is noticed each time
    assert shell.returncode == 3
