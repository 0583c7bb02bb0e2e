from __future__ import annotations

import datetime
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from training import lifecycle
from training.state import JobState, main

ROOT = Path(__file__).parents[3]


def shell(*arguments):
    command = [sys.executable, "-m", "training.state", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("state", "status"), [("starting", 0), ("running", 0), ("done", 1), ("stopped", 1), ("failed", 1)]
)
def test_may_run_says_whether_work_is_left(state, status, tmp_path, capsys):
    JobState(tmp_path).begin(state=state, job="demo", reason="because")
    assert main(["may-run", str(tmp_path)]) == status
    expected = "" if status == 0 else f"job demo is {state} (because): nothing to run\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("content", [None, "{", "[]", '{"state": "dancing"}'])
@pytest.mark.parametrize("verb", ["may-run", "show"])
def test_unusable_files_give_status_2_and_one_line(content, verb, tmp_path, capsys):
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    assert main([verb, str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert str(tmp_path / "state.json") in out + err
    assert (out + err).count("\n") == 1


def test_command_line_sets_shows_and_fails(tmp_path):
    job = tmp_path / "job"
    assert shell("set", job, "--state", "starting", "--run-id", "r1", "--job", "demo").returncode == 0
    assert shell("may-run", job).returncode == 0
    failed = shell("fail", job, "--reason", "no disk", "--node", "node2", "--rank", "1")
    assert (failed.returncode, failed.stdout) == (0, "recorded\n")
    assert shell("may-run", job).returncode == 1
    content = json.loads(shell("show", job).stdout)
    expected = {"state": "failed", "run_id": "r1", "job": "demo", "reason": "no disk", "failed_node": "node2"}
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
