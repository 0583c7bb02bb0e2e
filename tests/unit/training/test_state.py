from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from training import lifecycle
from training.config import Config
from training.distributed import CardLostError
from training.errors import UserError
from training.state import JobState, SupersededError, main

ROOT = Path(__file__).parents[3]


def shell(*arguments):
    command = [sys.executable, "-m", "training.state", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"state": "dancing"}'])
def test_unusable_files_give_status_2_and_one_line(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    assert main(["show", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert str(tmp_path / "state.json") in out + err
    assert (out + err).count("\n") == 1


def test_command_line_sets_shows_and_fails(tmp_path):
    job = tmp_path / "job"
    claim = ["claim", job, "--run-id=r1", "--job=demo", "--nodes=node1,node2", "--nnodes-min=1"]
    assert (shell(*claim).returncode, shell(*claim).stdout) == (0, "claimed\n")
    failed = shell("fail", job, "--reason", "no disk", "--node", "node2", "--rank", "1")
    assert (failed.returncode, failed.stdout) == (0, "recorded\n")
    content = json.loads(shell("show", job).stdout)
    expected = {"state": "failed", "run_id": "r1", "job": "demo", "reason": "no disk", "failed_node": "node2"}
    expected["planned_nodes"] = ["node1", "node2"]
    assert content | expected | {"failed_rank": 1} == content
    assert {"started", "updated"} <= set(content)
    second = shell("fail", job, "--reason", "other", "--node", "node3")
    assert second.stdout == "not recorded: the job is failed already\n"
    assert json.loads(shell("show", job).stdout)["reason"] == "no disk"


def test_a_new_start_forgets_the_last_end_only(tmp_path):
    state = JobState(tmp_path)
    state.begin(state="running", run_id="r1", step=40, checkpoint="c")
    state.fail("broken", "node1", 0)
    assert main(["set", str(tmp_path), "--state", "starting", "--run-id", "r2"]) == 0
    content = state.read()
    assert content["state"] == "starting"
    assert (content["run_id"], content["step"], content["checkpoint"]) == ("r2", 40, "c")
    assert not {"reason", "failed_rank", "failed_node"} & set(content)


@pytest.mark.parametrize("ended", ["done", "stopped", "failed"])
def test_progress_cannot_undo_an_end(ended, tmp_path):
    state = JobState(tmp_path)
    state.begin(state=ended, step=3)
    assert not state.progress(state="running", step=4)
    assert not state.fail("late", "node1")
    assert state.read()["step"] == 3


def test_of_many_failures_at_once_one_wins(tmp_path):
    JobState(tmp_path).begin(state="running")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda rank: JobState(tmp_path).fail(f"of {rank}", f"node{rank}", rank), range(8)))
    assert won.count(True) == 1
    assert JobState(tmp_path).read()["failed_rank"] == won.index(True)


def test_a_failure_of_a_later_start_replaces_an_earlier_end(tmp_path):
    state = JobState(tmp_path)
    state.begin(state="running", run_id="r1")
    assert state.fail("first", "node1", 0, "r1")
    assert not state.fail("second", "node2", 1, "r1")
    assert state.fail("third", "node3", run_id="r2")
    content = state.read()
    assert (content["reason"], content["failed_node"], content["run_id"]) == ("third", "node3", "r2")
    assert "failed_rank" not in content


@pytest.mark.parametrize("now", ["starting", "running", "failed"])
def test_a_late_worker_of_an_earlier_start_does_not_fail_the_one_that_was_claimed_after_it(now, tmp_path):
    state = JobState(tmp_path)
    state.begin(state=now, run_id="r2")
    assert not state.fail("OOM", "node3", 2, "r1", claimed=True)
    assert (state.read()["state"], state.read()["run_id"]) == (now, "r2")


def test_without_ids_what_ended_before_this_process_began_is_another_start(tmp_path):
    state, now = JobState(tmp_path), datetime.datetime.now(datetime.UTC)
    state.begin(state="stopped")
    assert not state.fail("of a process that was there", "node1", 1, began=now - datetime.timedelta(seconds=9))
    assert state.fail("of a later one", "node1", 1, began=now + datetime.timedelta(seconds=9))
    assert not state.fail("of its neighbour", "node1", 2, began=now - datetime.timedelta(seconds=8))
    assert state.read()["reason"] == "of a later one"
    own = lifecycle.process_began()
    assert now - datetime.timedelta(hours=2) < own < now
    child = subprocess.run(
        [sys.executable, "-c", "from training import lifecycle; print(lifecycle.process_began())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert now - datetime.timedelta(seconds=1) < datetime.datetime.fromisoformat(child.stdout.strip())


def test_only_known_states(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["set", str(tmp_path), "--state", "dancing"])
    assert "invalid choice: 'dancing'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class TestClaim:
    """Of two starts at once one goes on, and whoever comes later knows."""

    def claim(self, state, run_id="r2", instead_of="r1", wait=None):
        return state.claim(run_id, instead_of, "demo", ["node1", "node2", "node3"], 2, "c2", wait or self.never)

    @staticmethod
    def never(seconds):
        raise AssertionError("it waits")

    def test_a_new_start_forgets_how_far_the_last_one_was(self, tmp_path):
        state = JobState(tmp_path)
        state.begin(state="stopped", run_id="r1", step=40, starts=3, given_up=["node1"], nodes=["node2"], reason="x")
        assert self.claim(state) == ""
        content = state.read()
        assert content["planned_nodes"] == ["node1", "node2", "node3"] and content["nnodes_min"] == 2
        assert content["config_sha256"] == "c2"
        assert (content["state"], content["run_id"], content["step"]) == ("starting", "r2", 40)
        assert not {"starts", "given_up", "nodes", "reason"} & set(content)

    def test_a_job_that_lost_all_its_nodes_is_taken_over(self, tmp_path):
        JobState(tmp_path).begin(state="running", run_id="r1")
        assert self.claim(JobState(tmp_path)) == ""

    @pytest.mark.parametrize("state", ["starting", "running", "done", "stopped", "failed"])
    def test_what_another_start_has_come_to_is_left_alone(self, state, tmp_path):
        JobState(tmp_path).begin(state=state, run_id="r9")
        assert "somebody else meanwhile" in self.claim(JobState(tmp_path))
        assert JobState(tmp_path).read()["run_id"] == "r9"

    def test_a_start_under_way_is_waited_for(self, tmp_path):
        state, waited = JobState(tmp_path), []
        state.begin(state="starting", run_id="r9")

        def comes_to_work(seconds):
            waited.append(seconds)
            if len(waited) == 3:
                state.begin(state="running", run_id="r9")

        assert "somebody else meanwhile" in self.claim(state, instead_of="r9", wait=comes_to_work)
        assert len(waited) == 3

    def test_a_start_that_was_broken_off_is_waited_for_a_minute(self, tmp_path):
        state, waited = JobState(tmp_path), []
        state.begin(state="starting", run_id="r9")

        def a_minute_later(seconds):
            waited.append(seconds)
            old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=61)
            state.file.write_text(json.dumps(state.read() | {"updated": old.isoformat()}))

        assert self.claim(state, instead_of="r9", wait=a_minute_later) == ""
        assert len(waited) == 1 and state.read()["run_id"] == "r2"

    def test_of_many_at_once_one_wins(self, tmp_path):
        JobState(tmp_path).begin(state="failed", run_id="r0")

        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(lambda number: self.claim(JobState(tmp_path), f"r{number}", "r0"), range(1, 9)))
        assert sorted(map(bool, said)) == [False, *[True] * 7]

    def test_a_job_that_cannot_be_prepared_does_not_end_another_start(self, tmp_path):
        failed = ["set", str(tmp_path), "--state=failed", "--run-id=r2", "--reason=no data", "--instead-of=r1"]
        JobState(tmp_path).begin(state="running", run_id="r9")
        assert main(failed) == 0 and JobState(tmp_path).read()["state"] == "running"
        JobState(tmp_path).begin(state="stopped", run_id="r1")
        assert main(failed) == 0 and JobState(tmp_path).read()["reason"] == "no data"


def test_starts_that_come_no_further_are_counted(tmp_path):
    state = JobState(tmp_path)
    state.claim("r1", "", "demo", ["node1"], 1)
    assert [state.count_start() for _ in range(3)] == [1, 2, 3]
    state.progress(state="running", step=7)
    assert [state.count_start(), state.count_start()] == [1, 2]
    state.begin(state="running", step=5)  # from an older checkpoint: to step 7 it is known ground
    state.progress(step=7)
    assert state.count_start() == 3
    state.progress(step=8)
    assert state.count_start() == 1
    assert state.read()["starts"] == 7


def test_too_many_starts_in_a_row_end_the_job(tmp_path, monkeypatch):
    state = JobState(tmp_path)
    state.claim("r1", "", "demo", ["node1"], 1)
    for name, value in {"MINOS_RUN_ID": "r1", "MINOS_MAX_RESTARTS": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for _ in range(3):
        lifecycle.require_progress(state)
    with pytest.raises(UserError, match="started 4 times and came no further than step 0"):
        lifecycle.require_progress(state)
    monkeypatch.setenv("RANK", "1")
    lifecycle.require_progress(state)


def test_a_worker_of_an_earlier_start_changes_nothing(tmp_path, monkeypatch, capsys):
    """Its node was away while the job was stopped and started again without it."""
    monkeypatch.setenv("MINOS_RUN_ID", "r1")
    ours = JobState(tmp_path)
    ours.claim("r1", "", "demo", ["node1", "node2"], 1)
    ours.begin(state="running", run_id="r1", step=3)
    ours.claim("r2", "r1", "demo", ["node1"], 1)
    later = ours.read()
    with pytest.raises(SupersededError):
        ours.begin(state="running", run_id="r1", step=0)
    assert not ours.progress(step=4)
    ours.count_start()
    assert ours.read() == later
    assert lifecycle.ended_already(ours, None)
    assert "is of r2, a later start than r1" in capsys.readouterr().out
    monkeypatch.setenv("MINOS_RUN_ID", "r2")
    theirs = JobState(tmp_path)
    assert not lifecycle.ended_already(theirs, None)
    theirs.begin(state="running", run_id="r2", step=3)
    assert theirs.progress(step=4)


@pytest.mark.parametrize("end", ["stopped", "failed", "done"])
def test_a_start_that_was_ended_while_its_workers_came_does_not_begin(end, tmp_path, monkeypatch):
    monkeypatch.setenv("MINOS_RUN_ID", "r1")
    state = JobState(tmp_path)
    state.claim("r1", "", "demo", ["node1"], 1)
    state.change(lambda content: content | {"state": end})
    with pytest.raises(SystemExit), lifecycle.failures_recorded(state):
        state.begin(state="running", run_id="r1")
    assert state.read()["state"] == end


def test_settings_that_another_command_has_written_are_not_trained_with(tmp_path, monkeypatch):
    monkeypatch.setenv("MINOS_RUN_ID", "r1")
    state, ours, theirs = JobState(tmp_path), Config(data_train="a.txt"), Config(data_train="a.txt", lr=0.5)
    lifecycle.require_claimed(state, ours)
    state.claim("r1", "", "demo", ["node1"], 1, ours.sha256())
    lifecycle.require_claimed(state, ours)
    with pytest.raises(UserError, match=r"another train\.yml has changed them meanwhile"):
        lifecycle.require_claimed(state, theirs)
    lifecycle.require_claimed(state, ours, ours.sha256())
    with pytest.raises(UserError, match=r"the data were prepared for other settings .*another train\.yml"):
        lifecycle.require_claimed(state, ours, theirs.sha256())
    monkeypatch.delenv("MINOS_RUN_ID")
    lifecycle.require_claimed(state, theirs)  # by hand nothing was claimed


def test_a_node_that_gives_up_fails_the_job_when_too_few_are_left(tmp_path):
    state = JobState(tmp_path)
    state.claim("r1", "", "demo", ["node1", "node2", "node3"], 2)
    assert not state.give_up("node3", "its unit gave up")
    assert not state.give_up("node3", "again")
    assert state.read()["state"] == "starting" and state.read()["given_up"] == ["node3"]
    assert state.give_up("node1", "its unit gave up")
    content = state.read()
    assert (content["state"], content["failed_node"], content["reason"]) == ("failed", "node1", "its unit gave up")


def test_a_share_that_hangs_holds_neither_the_reason_nor_the_others(tmp_path, monkeypatch, capsys):
    """As a dead server does, so holds a pipe that nobody reads whoever opens it to write."""
    state = JobState(tmp_path)
    state.begin(state="running", run_id="r1")
    (tmp_path / ".state.lock").unlink()
    os.mkfifo(tmp_path / ".state.lock")
    monkeypatch.setattr(lifecycle, "RECORD_SECONDS", 0.5)
    # The thread that hangs must not hold the lock of this process's threads from other tests.
    monkeypatch.setattr("training.state.THREADS", threading.Lock())
    began = time.monotonic()
    with pytest.raises(MemoryError, match="too large"), lifecycle.failures_recorded(state):
        raise MemoryError("too large")
    assert time.monotonic() - began < 10
    assert "the failure cannot be recorded: no answer within" in capsys.readouterr().err
    os.close(os.open(tmp_path / ".state.lock", os.O_RDONLY | os.O_NONBLOCK))  # lets the thread go


def test_a_new_start_forgets_the_workers_of_the_last(tmp_path):
    """One of them that is alive yet, out of reach, would end it otherwise."""
    state = JobState(tmp_path)
    state.claim("r1", "", "own", ["node1"], 1)
    state.change(lambda now: now | {"attempt": "r1 x:1", "workers": {"0": "node1"}, "finished": [0], "state": "failed"})
    assert state.claim("r2", "r1", "own", ["node1"], 1) == ""
    assert not {"attempt", "workers", "finished"} & state.read().keys()


@pytest.mark.parametrize(
    ("error", "signalled"),
    [
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), []),
        (CardLostError("torch sees 1 of the 2 GPUs that node1 had"), [(os.getppid(), signal.SIGTERM)]),
    ],
)
def test_a_card_that_fails_ends_no_job_and_one_that_is_gone_ends_this_nodes_agent(
    error, signalled, tmp_path, monkeypatch, capsys
):
    sent, state = [], JobState(tmp_path)
    monkeypatch.setattr(lifecycle.os, "kill", lambda *what: sent.append(what))
    monkeypatch.setenv("MINOS_RUN_ID", "r1")
    state.begin(state="running", run_id="r1")
    with pytest.raises(type(error)), lifecycle.failures_recorded(state):
        raise error
    assert (state.read()["state"], sent) == ("running", signalled)
    assert str(error) in capsys.readouterr().err
    monkeypatch.delenv("MINOS_RUN_ID")
    with pytest.raises(type(error)), lifecycle.failures_recorded(state):
        raise error
    assert state.read()["state"] == "failed" and sent == signalled, "by hand nobody starts it again"


def test_where_all_that_trained_have_given_up_nobody_waits_for_one_that_is_off(tmp_path):
    state = JobState(tmp_path)
    state.claim("r1", "", "demo", ["node1", "node2", "node3"], 1)
    state.begin(state="running", nodes=["node2", "node3"])
    assert not state.give_up("node3", "its unit gave up")
    assert state.give_up("node2", "its unit gave up") and state.read()["state"] == "failed"


def test_a_start_without_a_node_that_is_off_does_not_wait_for_it(tmp_path):
    """resume.yml goes on with two of three: the third would not take part if it came back."""
    state = JobState(tmp_path)
    state.claim("r1", "", "demo", ["node1", "node2", "node3"], 2, without=["node3"])
    assert state.give_up("node1", "its unit gave up") and state.read()["state"] == "failed"
    state.claim("r2", "r1", "demo", ["node1", "node2", "node3"], 2)
    assert "without" not in state.read() and not state.give_up("node1", "its unit gave up")


def test_what_ends_an_earlier_start_does_not_end_this_one(tmp_path):
    state = JobState(tmp_path)
    state.claim("r1", "", "demo", ["node1"], 1)
    state.fail("of its own", "node1", run_id="r1")
    state.claim("r2", "r1", "demo", ["node1"], 1)
    assert not state.give_up("node1", "its unit gave up", "r1") and state.read()["state"] == "starting"
    assert "given_up" not in state.read()
    state.fail("of its own", "node1", run_id="r2")
    state.explain({"reason": "of the first"}, "r1")
    assert state.read()["reason"] == "of its own"
    state.explain({"reason": "better said"}, "r2")
    assert state.read()["reason"] == "better said"
