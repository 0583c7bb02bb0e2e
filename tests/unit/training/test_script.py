"""Somebody's own script as a worker: it runs as the main program, and its job's state file is kept for it."""

from __future__ import annotations

import datetime
import errno
import json
import os
import re
import signal
import textwrap
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, state_of

from training import script
from training.rendezvous import connected, is_closed
from training.script import Worker, joined, reached_the_end, record_the_end, wait_for_the_others
from training.state import JobState

NOW = datetime.datetime(2026, 5, 4, 12, 0, tzinfo=datetime.UTC)
FACTS = {"job": "own", "script": "own.py", "config_sha256": "abc"}


def worker(rank: int = 0, attempt: str = "10.0.0.1:1", run_id: str = "r1", world_size: int = 2) -> Worker:
    return Worker(run_id=run_id, attempt=attempt, rank=rank, world_size=world_size, node=f"node{rank + 1}", limit=3)


def two() -> dict:
    """The state of two workers that have both begun."""
    return joined(joined({}, worker(1), FACTS, NOW), worker(0), FACTS, NOW)


def test_it_runs_when_all_have_begun_with_nodes_in_the_order_of_their_ranks():
    first = joined({}, worker(1), FACTS, NOW)
    assert first["state"] == "starting" and "nodes" not in first
    content = two()
    assert (content["state"], content["nodes"], content["world_size"]) == ("running", ["node1", "node2"], 2)
    assert FACTS.items() <= content.items()


def test_it_is_done_when_the_last_rank_is_through():
    content = reached_the_end(two(), worker(0))
    assert content["state"] == "running"
    assert reached_the_end(content, worker(0))["state"] == "running", "the same rank twice is one rank"
    assert reached_the_end(content, worker(1))["state"] == "done"


def test_who_ended_before_a_restart_ends_again():
    first = reached_the_end(two(), worker(0))
    second = joined(first, worker(0, "10.0.0.1:2"), FACTS, NOW)
    assert (second["finished"], second["state"], second["nodes"]) == ([], "running", ["node1", "node2"])
    assert reached_the_end(second, worker(1, "10.0.0.1:1")) is None, "a worker of the attempt before counts no more"


@pytest.mark.parametrize("end", ["failed", "stopped"])
def test_what_has_ended_stays_so(end):
    ended = two() | {"state": end, "reason": "because"}
    assert reached_the_end(ended, worker(0)) is None
    assert joined(ended, worker(0, "10.0.0.1:2"), FACTS, NOW) is None, "this run has ended"
    again = joined(ended, worker(0, "10.0.0.1:3", run_id="r2"), FACTS, NOW)
    assert again["state"] == "starting" and "reason" not in again


def test_an_earlier_attempt_does_not_fail_a_later_one(tmp_path):
    state = JobState(tmp_path)
    state.change(lambda _: two())
    state.change(lambda content: joined(content, worker(0, "10.0.0.1:2"), FACTS, NOW))
    assert not script._fail(state, worker(1), "late", [])
    assert state.read()["state"] == "running", "the later one goes on"
    assert script._fail(state, worker(1, "10.0.0.1:2"), "no luck", ["line"])
    failed = state.read()
    assert (failed["state"], failed["reason"], failed["failed_node"], failed["failed_rank"]) == (
        "failed",
        "no luck",
        "node2",
        1,
    )


def test_starts_are_counted_until_one_lasts():
    content, moment = {}, NOW
    for number in range(3):
        content = joined(content, worker(0, f"10.0.0.1:{number}"), FACTS, moment)
        moment += datetime.timedelta(seconds=script.LASTED - 1)
    assert (content["starts"], content["starts_without_step"]) == (3, 3)
    lasted = joined(content, worker(0, "10.0.0.1:99"), FACTS, moment + datetime.timedelta(seconds=1))
    assert (lasted["starts"], lasted["starts_without_step"]) == (4, 1)
    assert "lasting_began" not in content and lasted["lasting_began"] == content["attempt_began"]


def test_after_a_loss_fewer_run():
    alone = joined(two(), worker(0, "10.0.0.1:2", world_size=1), FACTS, NOW)
    assert (alone["nodes"], alone["world_size"]) == (["node1"], 1)
    assert reached_the_end(alone, worker(0, "10.0.0.1:2", world_size=1))["state"] == "done"


def test_workers_that_share_the_launchers_store_are_told_apart_by_its_count():
    environment = {"MASTER_ADDR": "here", "MASTER_PORT": "7", "TORCHELASTIC_RESTART_COUNT": "2"}
    environment |= {"MINOS_RUN_ID": "r1"}
    assert Worker.of(environment).attempt == "r1 here:7"
    assert Worker.of(environment | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).attempt == "r1 here:7#2"


@pytest.fixture
def own(tmp_path, start):
    """own(text, ...) starts a script of this text under the real launcher and returns the run."""

    def begin(text: str, *arguments: str, processes: int = 2, max_restarts: int = 2, name: str = "own.py", **more):
        folder = tmp_path / "own-1"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump({"script": f"own-1/{name}", "arguments": list(arguments)}))
        environment = {"PYTHONPATH": str(ROOT), "MINOS_RUN_ID": "r1", "MINOS_NODE": "node1"}
        return start(
            processes,
            tmp_path / "job",
            config=config,
            entry=("-m", "training.script"),
            max_restarts=max_restarts,
            environment=environment | more,
        )

    return begin


# What a script may count on, written down by the script itself.
LOOK = """
    import json, multiprocessing, os, subprocess, sys, training, helper
    import extra, yaml
    import __main__

    def squared(x):
        return x * x

    if __name__ == "__main__":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            nine = pool.map(squared, [3])[0]
        seen = {"argv": sys.argv, "file": __file__, "main": __main__.squared is squared, "nine": nine}
        child = [sys.executable, "-c", "import extra; print(extra.WHOSE)"]
        seen |= {"extra": extra.WHOSE, "child": subprocess.check_output(child, text=True)}
        seen |= {"yaml": hasattr(yaml, "load")}
        seen |= {"training": training.WHOSE, "helper": helper.WHOSE, "cwd": os.getcwd()}
        names = ("MINOS_SHARED_DIR", "MINOS_LOCAL_DIR", "RANK", "WORLD_SIZE", "NODE_RANK")
        seen |= {name: os.environ[name] for name in names}
        open(f"seen-{os.environ['RANK']}.json", "w").write(json.dumps(seen))
"""


def test_it_is_the_main_program_with_its_own_modules(own, tmp_path):
    """One is called like ours; processes that it spawns find it again."""
    (tmp_path / "own-1").mkdir()
    for module in ("training", "helper"):
        (tmp_path / f"own-1/{module}.py").write_text("WHOSE = 'theirs'\n")
    (tmp_path / "packages").mkdir()
    for module in ("extra", "yaml"):
        (tmp_path / f"packages/{module}.py").write_text("WHOSE = 'extra'\n")
    run = own(
        LOOK,
        "--epochs",
        "two words",
        "--local=$MINOS_LOCAL_DIR",
        "${MINOS_NODE}:$HOME",
        MINOS_PACKAGES=str(tmp_path / "packages"),
    )
    assert run.wait() == 0, run.output
    folder = tmp_path / "job/output"
    seen = json.loads((folder / "seen-1.json").read_text())
    assert seen == {
        "argv": [str(tmp_path / "own-1/own.py"), "--epochs", "two words", f"--local={folder}", "node1:$HOME"],
        "file": str(tmp_path / "own-1/own.py"),
        "main": True,
        "nine": 9,
        "extra": "extra",
        "child": "extra\n",
        "yaml": True,
        "training": "theirs",
        "helper": "theirs",
        "cwd": str(folder),
        "MINOS_SHARED_DIR": str(folder),
        "MINOS_LOCAL_DIR": str(folder),
        "RANK": "1",
        "WORLD_SIZE": "2",
        "NODE_RANK": "0",
    }
    assert (state_of(tmp_path / "job")["state"], state_of(tmp_path / "job")["script"]) == ("done", "own.py")


def test_what_comes_with_minos_is_there_for_it(own, tmp_path):
    run = own("from training.checkpoints import Checkpoints\n", processes=1)
    assert run.wait() == 0, run.output
    assert state_of(tmp_path / "job")["state"] == "done"


def test_a_script_that_is_killed_again_and_again_is_given_up(own, tmp_path):
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    run = own(text, max_restarts=9, MINOS_MAX_RESTARTS="2", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    assert run.wait() == 0, "nothing is left to do for the last start"
    state = state_of(tmp_path / "job")
    assert (state["state"], state["starts"]) == ("failed", 4)
    assert state["reason"].startswith("own.py was started 4 times in a row and no start lasted 300 s")


def test_its_exception_ends_the_job_at_once_and_is_told(own, tmp_path):
    run = own("import os\nif os.environ['RANK'] == '1':\n    raise ValueError('no such luck')\n")
    assert run.wait() == 0, "torchrun has nothing left to restart"
    state = state_of(tmp_path / "job")
    assert (state["state"], state["reason"]) == ("failed", "own.py: ValueError: no such luck")
    assert (state["failed_node"], state["failed_rank"]) == ("node1", 1)
    assert state["last_lines"][1].endswith('own.py", line 3, in <module>'), "not our frames"
    assert run.output.count("Traceback (most recent call last)") == 1, "the restarted ones had nothing to do"


def test_the_agents_of_all_nodes_hear_of_it(own, store, tmp_path):
    """Under Minos: also the restarted ones do not end well, which an agent would wait for."""
    run = own("raise ValueError('no such luck')\n", processes=2, MINOS_STORE=store)
    assert run.wait() == 1
    assert state_of(tmp_path / "job")["reason"] == "own.py: ValueError: no such luck"
    assert "): the job has failed already, this one goes too" in run.output
    assert is_closed(connected(store), "r1.0")


@pytest.mark.parametrize(
    ("line", "said"), [("sys.exit(3)", "ended with status 3"), ("sys.exit('no data')", "ended with no data")]
)
def test_so_does_its_exit_status(line, said, own, tmp_path):
    run = own(f"import sys\n{line}\n", processes=1)
    assert run.wait() != 0
    assert state_of(tmp_path / "job")["reason"] == f"own.py: {said}"
    assert not state_of(tmp_path / "job").get("last_lines")


def test_a_killed_worker_is_started_again_and_goes_on_from_its_snapshot(own, tmp_path):
    """The loop that one finds in every introduction, as it is."""
    text = (ROOT / "training/examples/plain_ddp.py").read_text()
    run = own(text, "--epochs", "8", "--pause", "0.5", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    run.until(lambda: "epoch 2/8" in run.output)
    workers = [line for line in run.output.splitlines() if line.startswith("rank 1/2 ")]
    os.kill(int(workers[0].rpartition("pid=")[2]), signal.SIGKILL)
    assert run.wait() == 0, run.output
    assert "going on from snapshot.pt behind epoch" in run.output
    assert run.output.count("epoch 8/8") == 1
    state = state_of(tmp_path / "job")
    assert (state["state"], state["finished"], state["starts"]) == ("done", [0, 1], 2), "no failure of the peer's"
    assert (tmp_path / "job/output/snapshot.pt").exists()


LEAVES = """
    import os, signal, sys, time

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        os.write(tell, b"!")
        time.sleep(60)
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)  # that is the child's affair, and its end is not the script's
    os.waitpid(child, 0)
    print("there", flush=True)
    if os.environ.get("WAITS"):
        time.sleep(60)
"""


@pytest.mark.parametrize(("waits", "state"), [("", "done"), ("1", "running")])
def test_a_script_that_goes_when_it_is_told_to_is_not_done(waits, state, own, tmp_path):
    run = own(LEAVES, processes=1, WAITS=waits)
    if waits:
        run.until(lambda: "there" in run.output)
        assert state_of(tmp_path / "job")["finished"] == []
        os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait() == 0, run.output
    assert state_of(tmp_path / "job")["state"] == state


EVALUATES = """
    import os, time

    while os.environ["RANK"] == "0" and not os.path.exists(os.environ["GO"]):
        time.sleep(0.1)
    print("through", os.environ["RANK"], flush=True)
"""


def test_who_is_through_stays_until_the_last_one_is(own, tmp_path):
    """Its agent would leave after a while, and a node that boots then would begin the script anew."""
    run = own(EVALUATES, GO=str(tmp_path / "go"))
    run.until(lambda: state_of(tmp_path / "job").get("finished") == [1])
    pid = re.search(r"rank 1/2 .* pid=(\d+)", run.output)[1]
    time.sleep(2)
    assert Path(f"/proc/{pid}").exists() and state_of(tmp_path / "job")["state"] != "done"
    (tmp_path / "go").touch()
    assert run.wait() == 0, run.output
    assert (state_of(tmp_path / "job")["state"], run.output.count("through")) == ("done", 2)


def test_who_waits_for_the_others_goes_at_once_when_it_is_told_to(own, tmp_path):
    run = own(EVALUATES, GO="never")
    run.until(lambda: state_of(tmp_path / "job").get("finished") == [1])
    began = time.monotonic()
    os.kill(run.process.pid, signal.SIGTERM)
    run.wait()
    assert time.monotonic() - began < 20 and state_of(tmp_path / "job")["state"] != "done"


def test_an_end_that_cannot_be_recorded_is_no_reason_to_run_again(tmp_path, monkeypatch):
    """The last file has filled the share, or that gives an error once."""
    state, worker = JobState(tmp_path), Worker.of({"MINOS_RUN_ID": "r1", "WORLD_SIZE": "1"})
    state.change(lambda content: joined(content, worker, {}, datetime.datetime.now(datetime.UTC)))
    change, troubles = (
        JobState.change,
        iter([OSError(errno.ESTALE, "Stale"), OSError(errno.EIO, "I/O error")]),
    )

    def troubled(self, how):
        for trouble in troubles:
            raise trouble
        return change(self, how)

    monkeypatch.setattr(JobState, "change", troubled)
    monkeypatch.setattr("training.script.PAUSE", 0.01)
    assert record_the_end(state, worker)["state"] == "done"


def test_who_left_past_the_interpreter_is_not_waited_for_for_ever(tmp_path, monkeypatch, capsys):
    state, worker = JobState(tmp_path), Worker.of({"MINOS_RUN_ID": "r1", "WORLD_SIZE": "2", "RANK": "0"})
    monkeypatch.setattr("training.script.PAUSE", 0.01)
    monkeypatch.setattr("training.script.LINGER", 0.1)
    monkeypatch.setattr("training.script.signal.signal", lambda *_: None)
    wait_for_the_others({"state": "running", "attempt": worker.attempt}, state, worker)
    assert "others have not come to their end yet" in capsys.readouterr().out


def test_who_leaves_past_the_interpreter_is_not_seen_to_come_to_its_end(own, tmp_path):
    """The launcher has nothing to complain of; what ends the job then is training.failures, after the unit."""
    run = own("import os; os._exit(0)")
    assert run.wait() == 0, run.output
    state = state_of(tmp_path / "job")
    assert (state["state"], state["finished"]) == ("running", [])


def test_a_script_that_cannot_be_read_says_where(own, tmp_path):
    own("x = (\n", processes=1).wait()
    state = state_of(tmp_path / "job")
    assert state["reason"].startswith("own.py: SyntaxError")
    assert Path(tmp_path / "own-1/own.py").name in "".join(state["last_lines"])
