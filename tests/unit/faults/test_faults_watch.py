"""The fault matrix: how a moment is caught, on real files and processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults import watch
from training.storage import Steps


@pytest.fixture
def checkpoint(tmp_path):
    """The real writer of checkpoints, and an order of 256 MB for it: some tenths of a second."""
    memory = os.memfd_create("checkpoint")
    size = 256 << 20
    os.ftruncate(memory, size)
    files = [("progress.json", 0, 10), ("trees.pt", 0, 10), ("model.safetensors", 0, size)]
    command = [sys.executable, "-m", "training.storage.writer", str(memory), str(tmp_path / "origin"), "2"]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[memory], text=True)
    yield writer, json.dumps({"step": 15, "files": files}) + "\n", Steps(tmp_path / "origin")
    writer.kill()
    writer.communicate()
    os.close(memory)


def test_a_checkpoint_is_held_half_written_and_completed_when_it_is_let_go(checkpoint, tmp_path):
    writer, order, steps = checkpoint
    writer.stdin.write(order)
    writer.stdin.flush()
    held, deadline = None, time.monotonic() + 20
    while held is None and time.monotonic() < deadline:
        held = watch.hold_writer(str(tmp_path), 15)
    assert held == {"held": writer.pid, "writing": 15}
    status = Path(f"/proc/{writer.pid}/status").read_text()
    assert "State:\tT (stopped)" in status and steps.visible() == []
    os.kill(writer.pid, signal.SIGCONT)
    assert json.loads(writer.stdout.readline())["saved"] == 15
    assert steps.problem(steps.path(15)) is None


def test_an_earlier_checkpoint_is_left_alone(tmp_path):
    writer = subprocess.Popen(["sleep", "60"])
    (tmp_path / f".writing-step-00000010-node1-{writer.pid}").mkdir()
    try:
        assert watch.hold_writer(str(tmp_path), 15) is None
    finally:
        writer.kill()
        writer.wait()


def test_the_end_of_a_job_is_seen(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watch, "JOBS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["watch.py", "one", "0", "step", "3"])
    assert watch.main() == 1, "there is no state file yet"
    (tmp_path / "one").mkdir()
    (tmp_path / "one/state.json").write_text(json.dumps({"state": "running", "step": 4}))
    assert watch.main() == 0 and json.loads(capsys.readouterr().out) == {"step": 4}
    monkeypatch.setattr(sys, "argv", ["watch.py", "one", "100", "step", "9"])
    (tmp_path / "one/state.json").write_text(json.dumps({"state": "done", "step": 4}))
    assert watch.main() == 1, "it would be waited for in vain"


def test_what_was_said_is_found_while_the_share_does_not_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watch, "JOBS", tmp_path)
    monkeypatch.setattr(watch, "SILENCE", 0.2)
    answers = iter([None, {"said": "alarm: ..."}])
    monkeypatch.setattr(watch, "said", lambda job, text: next(answers))
    monkeypatch.setattr(sys, "argv", ["watch.py", "one", "60", "said", "alarm: "])
    (tmp_path / "one").mkdir()
    silent = tmp_path / "one/state.json"
    os.mkfifo(silent)  # whoever opens it waits, as for a server that is gone
    try:
        assert watch.main() == 0 and json.loads(capsys.readouterr().out) == {"step": 0, "said": "alarm: ..."}
    finally:
        os.close(os.open(silent, os.O_WRONLY | os.O_NONBLOCK))  # those who wait go on


RUNNING = {
    1: ("one", "python -m torch.distributed.run --nnodes=1:3 -m training.finetune --config c.yaml"),
    2: ("one", "python -u -m training.finetune --config c.yaml"),
    3: ("one", "nice -n 5 python -P -m training.storage.writer 7 /checkpoints 2"),
    4: ("two", "python -u -m training.finetune --config c.yaml"),
    5: ("one", "python -m training.unit may-run one"),
}


def test_only_workers_of_the_job_are_hit(tmp_path, monkeypatch):
    """In place of /proc, as this machine has no units of ours: an agent, a worker, a writer, another job's worker."""
    monkeypatch.setattr(watch, "PROC", tmp_path)
    for pid, (job, words) in RUNNING.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / f"{pid}/cgroup").write_text(f"0::/system.slice/system-minos/minos-train@{job}.service\n")
        (tmp_path / f"{pid}/cmdline").write_text(words.replace(" ", "\0") + "\0")
    sent = []
    monkeypatch.setattr(watch.os, "kill", lambda pid, number: sent.append((pid, number)))
    assert watch.send("one", "KILL") == {"workers": [2]} and sent == [(2, signal.SIGKILL)]
    assert watch.send("three", "KILL") is None
