"""What a node says of its jobs: the program that runs there, on this machine.

systemctl is a stand-in, as there is no systemd here: it prints what `systemctl show` of systemd 252 prints.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from paths import ROOT, action_plugin

PROGRAM = ROOT / "roles/job_look/files/look.py"
SYSTEMCTL = """\
#!/bin/sh
printf 'NRestarts=2\\nId=minos-train@demo.service\\nActiveState=active\\nSubState=running\\nUnitFileState=enabled\\n\\n'
printf 'NRestarts=0\\nId=minos-train@old.service\\nActiveState=failed\\nSubState=failed\\nUnitFileState=disabled\\n'
"""


@pytest.fixture
def node(tmp_path):
    """A node's directories, with the running job `demo`; `ask` asks it."""
    shared, state, settings = (tmp_path / name for name in ("shared", "state", "settings"))
    demo = shared / "jobs" / "demo"
    (demo / "metrics").mkdir(parents=True)
    (demo / "state.json").write_text(json.dumps({"state": "running", "step": 20}))
    rows = [{"type": "start", "step": 0, "time": 5.0}]
    rows += [{"type": "step", "step": step, "nodes": {"node1": {"gpu_utilisation": 0.9}}} for step in range(3000)]
    rows += [{"type": "eval", "step": 2999}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (demo / "metrics" / "metrics.jsonl").write_text(text + '{"type": "step", "st')
    for place in (demo / "checkpoints", state / "jobs/demo/checkpoints/abc"):
        for step in (9, 10):
            (place / f"step-{step:08d}").mkdir(parents=True)
            (place / f"step-{step:08d}" / "manifest.json").write_text("{}")
        (place / "step-00000011").mkdir()  # on its way
    (state / "jobs/demo/config.yaml").write_text("")
    (state / "jobs/demo/code-1").mkdir()
    (state / "jobs/demo/code-1/complete").write_text("")
    settings.mkdir()
    code = f"PYTHONPATH={state}/jobs/demo/code-1"
    env = ["# comment", "MINOS_RUN_ID=demo-1", "MINOS_NNODES=1:3", code, "https_proxy=me:secret@x", ""]
    (settings / "demo.env").write_text("\n".join(env))
    (tmp_path / "systemctl").write_text(SYSTEMCTL)
    (tmp_path / "systemctl").chmod(0o755)

    def ask(read_share=True):
        asked = {"shared": str(shared), "state": str(state), "read_share": read_share, "settings": str(settings)}
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, ask.program, json.dumps(asked)],
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    ask.shared, ask.program = shared, tmp_path / "look.py"
    slices = r"/system.slice/system-minos\x2dtrain.slice"
    for number, groups in {
        "11": f"0::{slices}/minos-train@demo.service\n",
        "12": f"4:pids:/\n1:name=systemd:/machine{slices}/minos-train@demo.service\n0::/\n",  # as before cgroup v2
        "13": "0::/user.slice/session-1.scope\n",
        "14": f"0::{slices}/minos-train@old-2.service\n",
    }.items():
        (tmp_path / "proc" / number).mkdir(parents=True)
        (tmp_path / "proc" / number / "cgroup").write_text(groups)
    (tmp_path / "proc/15").mkdir()  # gone since
    text = PROGRAM.read_text()
    assert text.count('PROC = Path("/proc")') == 1
    ask.program.write_text(text.replace('PROC = Path("/proc")', f'PROC = Path("{tmp_path}/proc")'))
    return ask


def test_a_node_says_what_it_knows(node):
    text = node()
    said = json.loads(text)
    unit = {"active": "active", "sub": "running", "restarts": 2, "enabled": True, "processes": 2}
    assert said["units"]["demo"] == unit
    assert (said["units"]["old"]["active"], said["units"]["old"]["processes"]) == ("failed", 0)
    assert said["settings"]["demo"] == {"run_id": "demo-1", "nnodes": "1:3", "ready": True}
    assert "secret" not in text
    assert said["copies"]["demo"]["step"] == 10, "one that is on its way does not count"
    job = said["jobs"]["demo"]
    assert (job["state"]["step"], job["began"], job["checkpoint"]["step"]) == (20, 5.0, 10)
    assert job["figures"]["step"] == 2999, "the newest row of progress, not the half one after it"
    assert abs(said["time"] - time.time()) < 60


def test_a_node_that_need_not_read_the_share_does_not(node):
    said = json.loads(node(read_share=False))
    assert (said["share"], said["jobs"]) == ("", {})


def test_what_is_wrong_with_the_share_or_a_job_in_it_is_said(node):
    (node.shared / "jobs" / "bad").mkdir()
    for content in ("{", "[]", "{}"):
        (node.shared / "jobs/bad/state.json").write_text(content)
        assert "cannot be understood" in json.loads(node())["jobs"]["bad"]["problem"]
    (node.shared / "jobs").rename(node.shared / "gone")
    said = json.loads(node())
    assert "No such file" in said["share"] and said["jobs"] == {}


def test_a_folder_that_cannot_be_read_hides_no_other(node):
    """Left by a service user of another number, or gone between two looks."""
    program = PROGRAM.read_text().replace(
        'if __name__ == "__main__":',
        "real = job\n"
        "def job(folder):\n"
        "    if folder.name == 'foreign':\n"
        "        raise PermissionError(13, 'Permission denied')\n"
        "    if folder.name == 'vanishes':\n"
        "        raise FileNotFoundError(2, 'No such file or directory')\n"
        "    return real(folder)\n"
        'if __name__ == "__main__":',
    )  # as root, which may read all, the kernel refuses nothing
    for name in ("foreign", "vanishes"):
        (node.shared / "jobs" / name).mkdir()
    node.program.write_text(program)
    said = json.loads(node())
    assert said["share"] == "answers" and set(said["jobs"]) == {"demo", "foreign"}
    assert said["jobs"]["foreign"]["problem"].endswith("foreign cannot be read (Permission denied)")


def test_a_share_that_hangs_is_left_alone():
    spec = importlib.util.spec_from_file_location("look", PROGRAM)
    look = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(look)

    def hangs():
        yield "first"
        time.sleep(30)

    began = time.monotonic()
    assert list(look.within(2, hangs)) == [["said", "first"]]
    assert time.monotonic() - began < 5
    assert list(look.within(5, lambda: ["x" * 1_000_000])) == [["said", "x" * 1_000_000], "end"]
    assert list(look.within(5, lambda: 1 / 0)) == [["error", "division by zero"]]
    # What even SIGKILL does not end until the server is back would else hold the connection open.
    streams = look.within(5, lambda: [str(Path(f"/proc/self/fd/{number}").readlink()) for number in range(3)])
    assert list(streams) == [*(["said", os.devnull] for _ in range(3)), "end"]


def test_of_a_slow_share_the_newest_jobs_are_seen(node):
    program = PROGRAM.read_text().replace("PATIENCE = 2.5", "PATIENCE = 1.5")
    slow = "real = job\ndef job(folder):\n    time.sleep(30 if folder.name == 'old' else 0)\n    return real(folder)\n"
    node.program.write_text(program.replace('if __name__ == "__main__":', slow + 'if __name__ == "__main__":'))
    (node.shared / "jobs/old").mkdir()
    os.utime(node.shared / "jobs/old", (1, 1))
    said = json.loads(node())
    assert said["share"] == "answers" and said["jobs"]["demo"]["state"]["state"] == "running"
    assert said["jobs"]["old"]["problem"].startswith("the shared directory is slow: it was not read within 1.5 s")
    assert said["jobs"]["old"]["unread"] is True
    os.utime(node.shared / "jobs/old")
    said = json.loads(node())
    assert (said["share"], said["jobs"]) == ("hangs", {}), "nothing has come"


def test_a_driver_that_holds_its_program_holds_nobody_else(monkeypatch):
    """nvidia-smi in the kernel's hands does not even die by SIGKILL; this one only ignores that it was asked to end."""
    spec = importlib.util.spec_from_file_location("look", PROGRAM)
    look = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(look)
    monkeypatch.setattr(look, "PATIENCE", 0.3)
    monkeypatch.setattr(look.subprocess.Popen, "kill", lambda process: None)
    began = time.monotonic()
    assert look.output("sleep", "8") == "" and time.monotonic() - began < 3
    monkeypatch.undo()
    assert look.output("echo", "well") == "well\n" and look.output("no-such-program") == ""


ask_node = action_plugin("job_look", "ask_node")
# What comes back instead of an answer, and what is said of it.
NO_ANSWER = {
    "sudo: unknown user minos\nsudo: error initializing audit plugin sudoers_audit": "no account for training: run",
    "/bin/sh: 1: /opt/minos/envs/dist-train/bin/python: not found": "no Python environment: run site.yml",
    "Job for minos-train@demo.service canceled.": "Job for minos-train@demo.service canceled.",
    "Failed to start minos-train@demo.service: Unit minos-train@demo.service not found.": "service not found.",
    "Traceback (most recent call last):\n  File x\nPermissionError: [Errno 13]": "PermissionError: [Errno 13]",
    "sudo: a password is required": "sudo wants a password: add -K",
    "you is not in the sudoers file.": "you may not use sudo",
    "/bin/sh: 1: sudo: not found": "there is no sudo",
}


@pytest.mark.parametrize(("said", "told"), NO_ANSWER.items())
def test_why_there_is_no_answer(said, told, monkeypatch):
    """Only what is sudo's is put down to sudo."""
    module = ask_node.ActionModule.__new__(ask_node.ActionModule)
    monkeypatch.setattr(
        module, "_low_level_execute_command", lambda *_, **__: {"stdout": "", "stderr": said}, raising=False
    )
    module._play_context = SimpleNamespace(remote_user="you", remote_addr="10.0.0.1", port=22)
    answer, problem = module._ask("x", b"")
    assert answer == {} and told in problem and "\n" not in problem
