"""Why a job ended: what one node saw, and the choice of the first failure."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from spoken import spoken

from training import journals
from training.failures import Failure, Line, failure_in, first_failure, is_settled, lines_of, told
from training.failures.__main__ import main
from training.state import JobState

HERE = Path(__file__).parent


# --- one node --------------------------------------------------------------------------------------------------------
def torchrun(*arguments: str) -> list[Line]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=0"]
    return spoken([sys.executable, *launch, str(HERE / "failing.py"), *arguments], cwd=HERE)


ENDINGS = {
    "raises": ("ValueError: row 5 has no label", None),
    "crashes": ("killed by signal 11 (SIGSEGV)", "crash"),
    "exits": ("ended with exit status 3", None),
}


@pytest.mark.parametrize(("how", "what", "cause"), [(how, *end) for how, end in ENDINGS.items()], ids=ENDINGS)
def test_a_program_that_knows_nothing_of_us_is_understood(how, what, cause):
    found = failure_in(torchrun(how), "node2")
    assert (found.node, found.rank, found.what) == ("node2", 1, what)
    assert (found.cause and found.cause.name) == cause and not found.follows
    assert abs(found.at - time.time()) < 30
    assert not [line for line in found.lines if line.startswith("rank 0: ")], "of the process that failed only"
    assert len(found.lines) == 20 and "rank 1: step 29" in found.lines
    assert "failed (exitcode: " in found.lines[-1]


@pytest.fixture
def small_group(tmp_path):
    """A control group of 100 MB, made as root; its file that processes enter by."""
    for top, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(top, f"minos-test-{os.getpid()}")
        try:
            group.mkdir()
            (group / limit).write_text("100M")
        except OSError:
            continue
        yield group / "cgroup.procs"
        group.rmdir()
        return
    pytest.skip("no control group of one's own can be made here")


def test_what_the_kernel_kills_for_memory_is_told_apart_from_a_kill(small_group):
    lines = torchrun("eats", str(small_group))
    alone = failure_in(lines, "node1")
    assert (alone.what, alone.rank, alone.cause.name) == ("killed by signal 9 (SIGKILL)", 1, "killed")
    log = subprocess.run(["dmesg"], capture_output=True, text=True)
    if log.returncode:
        pytest.skip("the kernel's log cannot be read here")
    kernel = [Line(at=alone.at, pid=0, text=text.partition("] ")[2]) for text in log.stdout.splitlines()]
    found = failure_in(lines, "node1", kernel)
    assert found.cause.name == "killed-for-memory"
    assert "Memory cgroup out of memory: Killed process" in "\n".join(found.lines)
    others = [
        dataclasses.replace(line, text=line.text.replace("pid=", "pid=9").replace("process ", "process 9"))
        for line in kernel
    ]
    assert failure_in(lines, "node1", others).cause.name == "killed", "another process that was killed is none of ours"


def line(text: str, at: float = 100, pid: int = 10, start: str = "a", systemd: bool = False) -> Line:
    return Line(at=at, pid=pid, text=text, start=start, systemd=systemd)


KILLED = "E1121 06:38:24 10 .../multiprocessing/api.py:1002] failed (exitcode: -9) local_rank: 0 (pid: 11) of binary: x"
OOM = line("minos-train@x.service: A process of this unit has been killed by the OOM killer.", 101, 1, systemd=True)


def test_systemds_word_of_the_oom_killer_belongs_to_the_death_beside_it():
    lines = [line("rank 2/3 node=node3 device=cpu", 90, 11), OOM, line(KILLED, 102)]
    found = failure_in(lines, "node3")
    assert (found.rank, found.what, found.cause.name) == (2, "killed by signal 9 (SIGKILL)", "killed-for-memory")
    late = [lines[0], dataclasses.replace(OOM, at=50), lines[2]]
    assert failure_in(late, "node3").cause.name == "killed"


def test_a_death_is_as_old_as_what_torchrun_did_about_it():
    """Not as its last word, which may be long ago, nor as the end of its brothers, who are given time to save."""
    closing = "W1121 06:38:23 10 .../api.py:1028] Sending process 12 closing signal SIGTERM"
    before = [line(closing, 3), line(KILLED, 4), line("working", 10, 11)]
    assert failure_in([*before, line(closing, 200), line(KILLED, 400)], "node1").at == 200
    assert failure_in([*before, line(KILLED, 400)], "node1").at == 400
    raised = KILLED.replace("-9", "1")
    assert failure_in([*before, line(closing, 12), line(raised, 400)], "node1").at == 10, "an exception is a last word"
    assert failure_in([*before, line(closing, 200), line(raised, 400)], "node1").at == 200


ENDED = "minos-train@x.service: Main process exited, code=exited, status=1/FAILURE"
SENT_HOME = ["Traceback (most recent call last):", "  File x", "torch.distributed...api.RendezvousClosedError"]


def test_the_agents_own_end_counts_more_than_a_death_that_was_made_good_for():
    lines = [line(KILLED, 50), *(line(text, 100) for text in SENT_HOME), line(ENDED, 101, 1, systemd=True)]
    found = failure_in(lines, "node1", since=60)
    assert (found.what, found.rank, found.follows, found.at) == (SENT_HOME[-1], None, True, 101)
    shot = ENDED.replace("exited, status=1/FAILURE", "killed, status=9/KILL")
    lines[-1] = line(shot, 101, 1, systemd=True)
    assert failure_in(lines, "node1").what == "Main process exited, code=killed, status=9/KILL"


def test_an_agent_that_finds_its_node_taken_has_not_failed():
    """The next try says by whom, and that is the reason."""
    taken = ENDED.replace("status=1/FAILURE", "status=76/PROTOCOL")
    lines = [line("rendezvous x.0 at 10.0.0.1:29500", 50), line(taken, 51, 1, systemd=True)]
    assert failure_in(lines, "node1") is None
    assert failure_in([lines[0], line(ENDED, 51, 1, systemd=True)], "node1") is not None


def test_an_agent_that_was_sent_home_does_not_hide_what_its_workers_died_of():
    """The job gave up for them, on another node, before this one's last worker could end by itself."""
    peerless = ["rank 1/3 node=node2 x", "rank 1 (node2): another rank is gone or late, this one goes too"]
    lines = [line(KILLED, 50, start="a")]
    lines += [line(text, 60, 12, start="b") for text in peerless]
    lines += [line(KILLED.replace("-9", "1").replace("pid: 11", "pid: 12"), 61, start="b")]
    lines += [line(text, 100, start="b") for text in SENT_HOME] + [line(ENDED, 101, 1, start="b", systemd=True)]
    found = failure_in(lines, "node2")
    assert (found.what, found.at) == ("killed by signal 9 (SIGKILL)", 50)
    assert failure_in(lines, "node2", since=55).what == SENT_HOME[-1]
    assert failure_in(lines, "node2", since=110) is None


def test_an_earlier_start_of_the_unit_does_not_count_once_the_job_went_on():
    old = [line(KILLED, 50, start="a"), line("training", 60, start="b"), line("training", 70, start="c")]
    assert failure_in(old, "node1", since=55) is None
    just_begun = [line(KILLED, 50, start="b"), line("job x is failed (...): nothing to run", 60, start="c")]
    assert failure_in(just_begun, "node1").what == "killed by signal 9 (SIGKILL)"


def test_the_journal_is_read_as_journalctl_writes_it(tmp_path, monkeypatch):
    """Of a program in its place, which writes the newest first as it is asked to."""
    ours = {
        "__REALTIME_TIMESTAMP": "1795243104000001",
        "_PID": "77",
        "_SYSTEMD_INVOCATION_ID": "a",
        "MESSAGE": "hello ",
    }
    raw = ours | {"MESSAGE": list("caf\xe9".encode()), "_PID": "78"}
    systemds = {"__REALTIME_TIMESTAMP": "1795243105000000", "_PID": "1", "INVOCATION_ID": "a", "MESSAGE": "Started x"}
    bar = ours | {"MESSAGE": list(b"  1%|\r  2%|" + b"x" * 5000), "_PID": "79"}
    newest = "\n".join(json.dumps(entry) for entry in (systemds, bar, raw, ours))
    (tmp_path / "journalctl").write_text(
        f'#!/bin/sh\necho "$@" >{tmp_path}/asked\ncat <<\'END\'\n{newest}\n{{"MESS\nEND\n'
    )
    (tmp_path / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = lines_of(journals.newest("--unit=x", most=9))
    asked = (tmp_path / "asked").read_text().split()
    assert {"--all", "--output=json", "--reverse", "--unit=x", "--lines=9"} <= set(asked)
    assert len(journals.newest()) == 4 and "--lines=0" not in (tmp_path / "asked").read_text()
    assert found.pop(2).text == f"  2%|{'x' * 995}... (5005 characters)", "a progress bar as it was last"
    assert [(each.pid, each.text, each.start, each.systemd) for each in found] == [
        (77, "hello", "a", False),
        (78, "caf\xe9", "a", False),
        (1, "Started x", "a", True),
    ]
    assert found[0].at == 1795243104.000001
    monkeypatch.setattr(journals, "MUCH", 300)
    assert [each["MESSAGE"] for each in journals.newest(most=9)] == ["Started x"], "no more than fits, and the newest"


# --- all nodes -------------------------------------------------------------------------------------------------------
LOST = Failure(node="node1", rank=0, at=100.1, what="RuntimeError: [gloo/...] Connection reset by peer [10.0.0.2]")
SHOT = Failure(node="node2", rank=1, at=100.4, what="killed by signal 9 (SIGKILL)")
BROKE = Failure(node="node3", rank=2, at=100.9, what="KeyError: 'label'")


def state_of(failure: Failure, **fields: object) -> dict[str, object]:
    return {"state": "failed"} | failure.to_state() | fields


def test_who_lost_a_peer_is_not_the_first_even_if_he_was_quicker():
    assert first_failure({}, [LOST, SHOT]) == SHOT
    assert first_failure(state_of(LOST), [SHOT]) == SHOT


def test_of_those_that_failed_by_themselves_it_is_the_earliest():
    assert first_failure({}, [BROKE, SHOT, LOST]) == SHOT
    assert first_failure(state_of(BROKE), [SHOT]) == SHOT


def test_where_all_lost_a_peer_it_is_the_earliest_of_them():
    later = dataclasses.replace(LOST, node="node3", at=160.0)
    assert first_failure({}, [later, LOST]) == LOST
    assert first_failure({}, []) is None


def test_what_the_worker_wrote_itself_is_kept_for_its_own_end():
    written = dataclasses.replace(BROKE, lines=("  File x", "KeyError: 'label'"))
    for at in (100.85, 100.95):  # its last line may be before that moment, or behind it
        seen = dataclasses.replace(BROKE, at=at, what="ended with exit status 1")
        assert first_failure(state_of(written), [seen, LOST]) == written


def test_what_was_made_good_for_is_not_the_reason():
    old = dataclasses.replace(SHOT, at=100.0)
    stepped = {"stepped": "1970-01-01T00:10:00+00:00"}
    late = dataclasses.replace(BROKE, at=620.0)
    assert first_failure(state_of(late) | stepped, [old]) == late
    assert first_failure(state_of(late), [old]) == old, "without a step behind it it counts"


def test_a_script_that_lasted_has_made_good_for_what_was_before():
    """It tells no steps."""
    old, late = dataclasses.replace(SHOT, at=100.0), dataclasses.replace(BROKE, at=2000.0)

    def began(seconds: int) -> str:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()

    state = state_of(late)
    assert first_failure(state | {"attempt_began": began(110)}, [old]) == late
    assert first_failure(state | {"attempt_began": began(1800), "lasting_began": began(110)}, [old]) == late
    assert first_failure(state | {"attempt_began": began(1800)}, [old]) == old, "no start has lasted since"


def test_a_worker_that_left_to_be_started_again_did_not_fail():
    left = line(KILLED.replace("-9", "75"), 200)
    assert failure_in([left], "node1").cause.name == "stopped-with-others"
    assert failure_in([line(KILLED, 100), left], "node1").what == "killed by signal 9 (SIGKILL)"


def test_a_state_without_a_failure_has_none():
    assert Failure.from_state({"state": "running", "reason": "x"}) is None
    assert Failure.from_state({"state": "failed"}) is None
    assert told({"state": "stopped"}) == []


def test_whether_something_better_may_still_come():
    assert is_settled(state_of(BROKE)) and is_settled(state_of(SHOT))
    assert not is_settled(state_of(LOST))
    assert not is_settled(state_of(Failure(node="node1", at=1, what="the unit minos-train@x.service gave up")))


def test_the_report_says_where_when_why_and_what_to_do():
    full = Failure(
        node="node2", rank=1, at=1795243104, what="OSError: [Errno 28] No space left on device", lines=("a", "b")
    )
    text = told(state_of(full))
    assert text[0] == "  reason       OSError: [Errno 28] No space left on device"
    assert text[1] == "  where        node2, rank 1, 2026-11-21 06:38:24+00:00"
    assert text[2] == "  cause        likely: a disk is full"
    assert text[3].startswith("  do           df -h on that node")
    assert text[4:] == ["    | a", "    | b"]


# --- into the job's state --------------------------------------------------------------------------------------------
@pytest.fixture
def node(tmp_path, monkeypatch):
    """`python -m training.failures` as the unit runs it on node2. There is no systemd here: its two programs answer
    from files. On nodes the real ones do (tests/lab/test_cluster.py).
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in {
        "journalctl": 'case "$*" in *--dmesg*) cat "$JOURNAL.kernel" ;; *) cat "$JOURNAL" ;; esac',
        "systemctl": "echo SubState=x; echo ActiveState=$UNIT_IS",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("JOURNAL", str(tmp_path / "journal"))
    (tmp_path / "journal.kernel").touch()
    job = tmp_path / "job"
    JobState(job).claim("run-1", "", "job", ["node1", "node2"], nnodes_min=2)

    def ends(lines: list[Line], unit_is: str) -> dict:
        written = [
            {"__REALTIME_TIMESTAMP": str(int(each.at * 1e6)), "_PID": str(each.pid), "MESSAGE": each.text}
            | {"INVOCATION_ID" if each.systemd else "_SYSTEMD_INVOCATION_ID": each.start}
            for each in lines
        ]
        (tmp_path / "journal").write_text("".join(json.dumps(entry) + "\n" for entry in written))
        monkeypatch.setenv("UNIT_IS", unit_is)
        assert main([str(job), "--node=node2", "--unit=minos-train@job.service", "--run-id=run-1"]) == 0
        return JobState(job).read()

    ends.job = job
    return ends


def test_a_node_that_is_tried_again_writes_down_what_it_saw_and_fails_nothing(node):
    now = time.time()
    state = node([line(KILLED, now)], "activating")
    assert state["state"] == "starting"
    assert json.loads((node.job / "failures/node2.json").read_text())["what"] == "killed by signal 9 (SIGKILL)"


def test_a_node_that_gave_up_fails_the_job_with_what_it_saw(node):
    now = time.time()
    state = node([dataclasses.replace(OOM, at=now), line(KILLED, now)], "failed")
    assert (state["state"], state["given_up"], state["failed_node"]) == ("failed", ["node2"], "node2")
    assert state["reason"] == "killed by signal 9 (SIGKILL) (the unit minos-train@job.service gave up)"
    assert state["cause"].startswith("the kernel killed it") and KILLED in state["last_lines"]
    assert node([], "inactive") == state, "a second look changes nothing"


BY_ITSELF = "inactive SubState=dead ExecMainCode=1 ExecMainStatus="


def test_an_agent_that_ended_well_without_an_end_of_its_job_fails_it(node):
    """As where all ranks of a script have left by os._exit(0); one that was told to stop ends otherwise."""
    assert node([], f"{BY_ITSELF}1")["state"] == "starting"
    state = node([], f"{BY_ITSELF}0")
    assert (state["state"], state["failed_node"]) == ("failed", "node2")
    assert state["reason"] == "the unit minos-train@job.service ended, and the job has not"


def test_what_was_found_here_is_better_than_a_peers_word(node):
    JobState(node.job).fail("RuntimeError: Connection reset by peer", "node1", 0, "run-1")
    state = node([line("rank 1/2 node=node2 x", 1, 11), line(KILLED, time.time() + 1000)], "inactive")
    assert state["failed_at"] > state["updated"], "not the moment at which it was written"
    assert (state["failed_node"], state["failed_rank"], state["reason"]) == ("node2", 1, "killed by signal 9 (SIGKILL)")


def test_a_peers_own_failure_stays_the_first(node):
    JobState(node.job).fail("KeyError: 'label'", "node1", 0, "run-1", ["  File x"])
    before = JobState(node.job).read()
    reset = "RuntimeError: [/gloo/transport/tcp/pair.cc] Connection reset by peer"
    lines = [line("Traceback (most recent call last):", pid=11), line(reset, pid=11), line(KILLED.replace("-9", "1"))]
    assert node(lines, "inactive") == before


def test_what_a_node_saw_of_an_earlier_start_of_the_job_does_not_count(node):
    """Neither what another node wrote down then, nor what this one's journal still holds."""
    JobState(node.job).change(lambda state: state | {"started": "2026-01-01T00:00:00+00:00", "state": "running"})
    node([line(KILLED, time.time() - 2)], "activating")  # not told apart by its time: clocks differ
    file = node.job / "failures/node2.json"
    file.rename(file.with_name("node1.json"))
    JobState(node.job).claim("run-2", "run-1", "job", ["node1", "node2"], nnodes_min=2)
    JobState(node.job).fail("RuntimeError: Connection reset by peer", "node1", 0, "run-2")
    node([line(KILLED, time.time() - 100)], "inactive")  # of the first start, and too late
    assert main([str(node.job), "--node=node2", "--unit=minos-train@job.service", "--run-id=run-2"]) == 0
    assert JobState(node.job).read()["reason"] == "RuntimeError: Connection reset by peer"


def test_a_job_that_ended_well_leaves_no_record(node):
    node([line(KILLED, time.time())], "activating")
    JobState(node.job).begin(state="done")
    assert node([line(KILLED, time.time())], "inactive")["state"] == "done"
    assert not (node.job / "failures/node2.json").exists()


@pytest.mark.parametrize(("finished", "after"), [([], "failed"), ([2], "failed"), ([2, 3], "running")])
def test_an_own_script_whose_ranks_are_through_here_may_take_longer_elsewhere(finished, after, node):
    """torchrun's agent waits five minutes for the others at the end, and goes."""
    script = {"state": "running", "workers": {"0": "node1", "1": "node1", "2": "node2", "3": "node2"}}
    JobState(node.job).change(lambda state: state | script | {"finished": finished})
    assert node([], f"{BY_ITSELF}0")["state"] == after
