"""What a job's unit asks before torchrun: whether to run, and which rendezvous is open. With a real store."""

from __future__ import annotations

import datetime
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousClosedError

from tests.unit.training.conftest import STORE, free_port, handler
from training import rendezvous, unit
from training.state import JobState

ROOT = Path(__file__).parents[3]


@pytest.fixture
def job(tmp_path) -> Path:
    folder = tmp_path / "jobs" / "demo"
    JobState(folder).begin(state="running", job="demo", run_id="r1")
    (tmp_path / "local").mkdir()
    return folder


def ask(job, run_id="r1", wait=None) -> int:
    return unit.may_run(job, run_id, "node2", job.parents[1] / "local", wait or pytest.fail)


@pytest.mark.parametrize(
    ("state", "status"), [("starting", 0), ("running", 0), ("done", 1), ("stopped", 1), ("failed", 1)]
)
def test_it_runs_while_work_is_left(state, status, job, capsys):
    JobState(job).begin(state=state, reason="because")
    assert ask(job) == status
    assert capsys.readouterr().out == ("" if status == 0 else f"job demo is {state} (because): nothing to run\n")


def test_a_node_that_has_lost_a_card_waits_for_its_driver_and_stays_away_then(job, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(unit.cards, "DRIVER", tmp_path / "gpus")
    monkeypatch.setenv("MINOS_GPUS", "2")
    (tmp_path / "gpus/0000:01:00.0").mkdir(parents=True)
    JobState(job).begin(state="running", given_up=["node2"])
    slept = []
    with pytest.raises(RuntimeError, match="node2: the driver sees 1 of the 2 GPUs that the job was started with"):
        ask(job, wait=slept.append)
    assert 60 <= sum(slept) <= 70 and capsys.readouterr().out == "waiting for the NVIDIA driver: 1 of 2 GPUs\n"
    assert JobState(job).read()["given_up"] == ["node2"], "it is not back yet"
    assert ask(job, wait=lambda _: (tmp_path / "gpus/0000:02:00.0").mkdir()) == 0
    monkeypatch.setattr(unit, "require_cards", lambda *_: 1 / 0)
    JobState(job).begin(state="done")
    assert ask(job) == 1, "what has ended needs no card"


def test_a_node_whose_cards_torch_cannot_use_does_not_join_the_others(tmp_path, monkeypatch, capsys):
    """They would wait for it each time it comes, and start anew each time it leaves."""
    monkeypatch.setenv("MINOS_NODE", "node2")
    monkeypatch.setattr(unit, "join", lambda *_: None)
    command = ["rendezvous", "--store=10.0.0.1:1", "--run-id=r1", f"--output={tmp_path}/x"]
    for there, status in ((0, 255), (1, 255), (2, 0)):
        monkeypatch.setenv("MINOS_GPUS", "2")
        monkeypatch.setattr(unit.cards, "of_torch", lambda there=there: there)
        assert unit.main(command) == status
        assert ("node2: torch sees 1 of the 2 GPUs" in capsys.readouterr().err) is (there == 1)
    monkeypatch.setenv("MINOS_GPUS", "0")
    monkeypatch.setattr(unit.cards, "of_torch", lambda: 1 / 0)
    assert unit.main(command) == 0, "torch is not loaded for nothing"


def test_a_node_that_comes_back_is_noted_until_the_workers_start(job):
    state = JobState(job)
    state.begin(state="running", nodes=["node1"], planned_nodes=["node1", "node2"], nnodes_min=1)
    assert ask(job) == 0 and state.read()["came_back"] == ["node2"]
    assert not state.give_up("node1", "its unit gave up"), "node2 is there and goes on"
    state.begin(state="running", nodes=["node2"])
    assert state.give_up("node2", "its unit gave up")


def test_a_job_that_was_never_started(job, capsys):
    JobState(job).file.unlink()
    assert ask(job) == 2
    assert capsys.readouterr().out.endswith("state.json: no such file; the job was never started\n")


@pytest.mark.parametrize("content", ["{", "[]", '{"state": "dancing"}'])
def test_an_unusable_state_file_is_one_line(content, job, capsys):
    JobState(job).file.write_text(content)
    arguments = ["may-run", str(job), "--run-id=r1", "--node=node2", f"--local={job.parents[1] / 'local'}"]
    assert unit.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_start_without_this_node_is_not_joined(job, capsys):
    assert ask(job, run_id="r0") == 1
    assert "job demo was started again without node2 (r1; here is r0)" in capsys.readouterr().out


def test_the_share_is_waited_for(job, capsys):
    hidden = job.parent.with_name("hidden")
    job.parent.rename(hidden)
    waited = []

    def comes_back(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            hidden.rename(job.parent)

    assert ask(job, wait=comes_back) == 0
    assert len(waited) == 3
    assert capsys.readouterr().out.count("waiting for the shared directory") == 1


@pytest.fixture
def agent(tmp_path):
    """Starts what looks like the agent of a job, holding the node as in the unit, and returns it at work."""
    started = []

    def start(local: Path, name: str, lock: bool = True) -> subprocess.Popen:
        sleeps = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)", "-m", "torch.distributed.run"]
        held = ["flock", "--nonblock", "--no-fork", str(local)] if lock else []
        process = subprocess.Popen([*held, *sleeps, "--local-dir", str(local / name)], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(("state", "after"), [("starting", "failed"), ("running", "running")])
def test_a_node_has_one_job_at_a_time(state, after, job, agent, capsys):
    JobState(job).begin(state=state)
    local = job.parents[1] / "local"
    agent(job.parents[1] / "elsewhere", "another", lock=False)  # of the lower number, and so seen first
    holder = agent(local, "first")
    assert ask(job) == 1
    assert "node2 trains job first, and a node has one job at a time" in capsys.readouterr().out
    assert JobState(job).read()["state"] == after, "a job that trains elsewhere goes on without this node"
    holder.kill()
    holder.wait()
    JobState(job).begin(state="running")
    assert ask(job) == 0


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_who_holds_a_node_unseen_is_not_named_and_may_be_about_to_leave(looks, job, capsys):
    """An agent that ends has no command line any more, for a moment, and holds the node still."""
    JobState(job).begin(state="starting")
    holder, waited = os.open(job.parents[1] / "local", os.O_RDONLY), []
    fcntl.flock(holder, fcntl.LOCK_EX)

    def leaves(seconds):
        waited.append(seconds)
        if len(waited) == looks:
            fcntl.flock(holder, fcntl.LOCK_UN)

    assert ask(job, wait=leaves) == (0 if looks < 3 else 1)
    assert len(waited) == min(looks, 2)
    said = capsys.readouterr().out
    assert "gives way" not in said and ("node2 trains job (unknown)" in said) == (looks == 3)
    assert JobState(job).read()["state"] == ("starting" if looks < 3 else "failed")
    os.close(holder)


def test_a_job_that_has_ended_and_never_leaves_is_not_waited_for_for_ever(job, agent, capsys):
    JobState(job).begin(state="starting")
    JobState(job.with_name("other")).begin(state="done")
    agent(job.parents[1] / "local", "other")
    waited = []
    assert ask(job, wait=waited.append) == 1
    assert sum(waited) == pytest.approx(600, abs=10)
    assert "node2 trains job other" in capsys.readouterr().out and JobState(job).read()["state"] == "failed"


@pytest.mark.parametrize(
    ("state", "began", "waits"),
    [
        ("starting", "2026-01-01T00:00:01+00:00", True),
        ("starting", "2025-12-31T23:59:59+00:00", False),
        ("running", "2026-01-01T00:00:01+00:00", False),
        ("failed", "2025-12-31T23:59:59+00:00", True),
        ("done", "2025-12-31T23:59:59+00:00", True),
    ],
)
def test_of_two_jobs_that_begin_together_the_first_goes_on(state, began, waits, job, agent, capsys):
    """Each may hold a node that the other needs: both would fail."""
    JobState(job).change(lambda now: now | {"state": "starting", "started": "2026-01-01T00:00:00+00:00"})
    JobState(job.with_name("other")).begin(state=state, started=began, run_id="r9")
    holder, waited = agent(job.parents[1] / "local", "other"), []

    def leaves(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            holder.kill()
            holder.wait()

    assert ask(job, wait=leaves) == (0 if waits else 1)
    assert len(waited) == (2 if waits else 0)
    said = capsys.readouterr().out
    assert said.count("job other still holds node2, and gives way to this one") == (1 if waits else 0)
    assert JobState(job).read()["state"] == ("starting" if waits else "failed")


def test_who_waits_for_another_job_to_leave_goes_when_its_own_is_stopped(job, agent):
    JobState(job).change(lambda now: now | {"state": "starting", "started": "2026-01-01T00:00:00+00:00"})
    JobState(job.with_name("other")).begin(state="starting", started="2026-01-01T00:00:01+00:00")
    agent(job.parents[1] / "local", "other")
    assert ask(job, wait=lambda _: JobState(job).progress(state="stopped")) == 1


def test_a_full_share_keeps_no_node_from_coming_back(job, monkeypatch, capsys):
    """It would give up after a minute and a half, and stay away when there is room again."""
    JobState(job).begin(state="running", nodes=["node1"], planned_nodes=["node1", "node2"], given_up=["node2"])
    for number, status in ((errno.ENOSPC, 0), (errno.EDQUOT, 0), (errno.EACCES, 255)):
        problem = OSError(number, os.strerror(number))
        monkeypatch.setattr(
            "training.state.write_atomically", lambda *_, problem=problem: (_ for _ in ()).throw(problem)
        )
        arguments = ["may-run", str(job), "--run-id=r1", "--node=node2", f"--local={job.parents[1] / 'local'}"]
        assert unit.main(arguments) == status
        assert capsys.readouterr().out.count("state.json cannot be written") == (2 if status == 0 else 0)


def test_a_node_that_was_mended_has_not_given_up(job):
    JobState(job).begin(given_up=["node2", "node3"])
    assert ask(job) == 0
    assert JobState(job).read()["given_up"] == ["node3"]


def test_a_node_that_train_yml_has_taken_in_again_is_part_of_it(job):
    JobState(job).change(lambda state: state | {"without": ["node2", "node3"]})
    assert ask(job, run_id="another") == 1 and JobState(job).read()["without"] == ["node2", "node3"]
    assert ask(job) == 0 and JobState(job).read()["without"] == ["node3"]


def test_what_nobody_foresaw_is_tried_again(job, monkeypatch, capsys):
    """Every other status would let systemd take the unit for one that has nothing to do."""
    monkeypatch.setattr(unit, "_runs_already", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    arguments = ["may-run", str(job), "--run-id=r1", "--node=node2", f"--local={job.parents[1] / 'local'}"]
    assert unit.main(arguments) == 255
    assert "No space left on device" in capsys.readouterr().err


def close(address: str, rendezvous: str) -> None:
    """As torchrun does it at its end."""
    handler(address, rendezvous).set_closed()


def joined(address: str, output: Path) -> str:
    unit.main(["rendezvous", f"--store={address}", "--run-id=r1", f"--output={output}"])
    found = dict(line.split("=") for line in output.read_text().splitlines())
    assert abs(float(found["MINOS_CLOCK"]) - time.time() + time.monotonic()) < 1
    return found["MINOS_RENDEZVOUS"]


def test_the_id_that_is_open_is_joined(store, tmp_path):
    output = tmp_path / "rendezvous.env"
    assert joined(store, output) == joined(store, output) == "r1.0"
    close(store, "r1.0")
    assert joined(store, output) == joined(store, output) == "r1.1"
    close(store, "r1.1")
    assert joined(store, output) == "r1.2"


def test_who_waits_for_others_is_sent_home_when_the_job_has_failed(store):
    waits = ThreadPoolExecutor(1).submit(handler(store, "r1.0").next_rendezvous)
    with pytest.raises(TimeoutError):
        waits.result(timeout=2)
    rendezvous.close(store, "r1")
    with pytest.raises(RendezvousClosedError):
        waits.result(timeout=20)


def test_who_trains_looks_up_when_the_job_has_failed(store):
    agents = [handler(store, "r1.0") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda agent: agent.next_rendezvous(), agents))
    assert [agent.num_nodes_waiting() for agent in agents] == [0, 0, 0]
    rendezvous.close(store, "r1")
    time.sleep(1.5)  # an agent takes what it has read for true for a second
    assert [agent.num_nodes_waiting() for agent in agents] == [1, 1, 1]
    with pytest.raises(RendezvousClosedError):
        agents[0].next_rendezvous()


def test_who_trains_looks_up_also_in_a_rendezvous_that_torchrun_has_closed(store, tmp_path):
    agents = [handler(store, "r1.0", last_call_timeout=2) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda agent: agent.next_rendezvous(), agents))
    close(store, "r1.0")
    assert joined(store, tmp_path / "rendezvous.env") == "r1.1"
    rendezvous.close(store, "r1")
    time.sleep(1.5)
    assert [agent.num_nodes_waiting() for agent in agents] == [1, 1]
    with pytest.raises(RendezvousClosedError):
        handler(store, "r1.1").next_rendezvous()


def test_a_process_of_the_job_sends_all_home(store, monkeypatch, capsys):
    waits = ThreadPoolExecutor(1).submit(handler(store, "r1.0").next_rendezvous)
    rendezvous.send_home()  # of a program that Minos has not started
    monkeypatch.setenv("MINOS_RUN_ID", "r1")
    monkeypatch.setenv("MINOS_STORE", f"127.0.0.1:{free_port()}")
    rendezvous.send_home()
    assert "the other nodes cannot be told that the job has failed: " in capsys.readouterr().err
    with pytest.raises(TimeoutError):
        waits.result(timeout=2)
    monkeypatch.setenv("MINOS_STORE", store)
    rendezvous.send_home()
    with pytest.raises(RendezvousClosedError):
        waits.result(timeout=20)


def test_who_cannot_run_here_sends_those_home_who_wait_for_him(job, store, monkeypatch):
    monkeypatch.setenv("MINOS_RUN_ID", "r1")
    monkeypatch.setenv("MINOS_STORE", store)
    JobState(job).change(lambda state: state | {"state": "starting"})
    holder = os.open(job.parents[1] / "local", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert ask(job, wait=lambda _: None) == 1 and JobState(job).read()["state"] == "failed"
    os.close(holder)
    with pytest.raises(RendezvousClosedError):
        handler(store, "r1.0").next_rendezvous()


def test_agents_that_come_together_advance_it_once(store):
    host, port = store.split(":")
    close(store, "r1.0")

    def one(_):
        connection = dist.TCPStore(host, int(port), is_master=False, timeout=datetime.timedelta(seconds=20))
        return rendezvous.open_generation(connection, "r1")

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(one, range(6))) == {1}


def test_who_waits_can_be_told_to_stop(tmp_path):
    command = ["rendezvous", f"--store=127.0.0.1:{free_port()}", "--run-id=r1", f"--output={tmp_path / 'x'}"]
    command = [sys.executable, "-m", "training.unit", *command]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout.readline().startswith("waiting for the store")
        waiting.terminate()
        assert waiting.wait(15) == 0, "a failure, to systemd"


def test_a_store_that_is_not_there_is_waited_for(tmp_path, capfd):
    address, output, found = f"127.0.0.1:{free_port()}", tmp_path / "rendezvous.env", []
    waiting = threading.Thread(target=lambda: found.append(joined(address, output)), daemon=True)
    waiting.start()
    said, patience = "", time.monotonic() + 60
    while f"waiting for the store at {address}" not in said:
        assert time.monotonic() < patience and not found
        said += capfd.readouterr().out
        time.sleep(0.1)
    command = [sys.executable, str(STORE), *address.split(":")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        waiting.join(30)
        server.terminate()
    assert found == ["r1.0"]
