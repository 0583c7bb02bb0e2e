"""The fault matrix without nodes: what is chosen, how a moment is caught, and what is judged."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.faults import cycles, data, report, watch
from tests.faults.case import Case, Fault, Struck
from tests.faults.catalogue import FAULTS, chosen
from tests.faults.cluster import JOB, error_of
from tests.faults.disks import SHRINK
from tests.faults.processes import FLIP, TRUNCATE, damage
from tests.faults.verdict import CLOCK, START, STEP, Facts, Line, Row, goal, judge, next_step, sizes
from training import distributed
from training.config import Config
from training.ledger import Ledger, expected_sum
from training.reports import Recorder
from training.storage import Steps

STEPS, BATCH, ROWS = JOB["steps"], JOB["global_batch"], 1000


def test_every_fault_of_the_issue_is_there_at_its_three_moments():
    assert sorted({fault.number for fault in FAULTS}) == list(range(1, 21))
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all({"before", "mid", "save"} <= set(fault.moments) for fault in FAULTS if fault.number != 18)
    assert len(chosen()) == sum(len(fault.moments) for fault in FAULTS) > 60


def test_what_is_asked_for_is_chosen():
    assert [(fault.name, moment) for fault, moment in chosen("store_killed, worker_killed", "mid,save")] == [
        ("worker_killed", "mid"), ("worker_killed", "save"), ("store_killed", "mid"), ("store_killed", "save"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"FAULTS=worker_kiled: worker_kiled is unknown; did you mean worker_killed\?"):
        chosen("worker_kiled")
    with pytest.raises(ValueError, match="MOMENTS=xyz: xyz is unknown; write some of start, before, mid, save"):
        chosen(moments="xyz")


# --- the moments -------------------------------------------------------------------------------------------------
@pytest.fixture
def checkpoint(tmp_path):
    """The real writer of checkpoints, and an order of 64 MB for it: some tenths of a second."""
    memory = os.memfd_create("checkpoint")
    size = 64 << 20
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


# --- what is read ------------------------------------------------------------------------------------------------
def test_the_lines_that_count_are_those_that_training_prints(tmp_path, capsys):
    distributed.start(Config(data_train="x.txt", backend="gloo"))
    distributed.end()
    recorder = Recorder(tmp_path, 40, active=True, resumed_at=0)
    recorder.step(step=3, epoch=1, seconds=0.3, loss=1.0, lr=1e-3, tokens_per_s=10, grad_norm=1.0)
    start, step = capsys.readouterr().out.splitlines()
    assert START.match(start)[1] == "1" and STEP.match(step)[1] == "3"


def test_a_journal_is_read_as_systemd_writes_it():
    def row(clock: int, steady: int, boot: str, message: object) -> str:
        times = {"__REALTIME_TIMESTAMP": str(clock), "__MONOTONIC_TIMESTAMP": str(steady)}
        return json.dumps(times | {"_BOOT_ID": boot, "MESSAGE": message}) + "\n"

    hour = 3600 * 10**6
    journal = "1700000000.0 b2\n" + row(1700000000250000, 99, "b1", "before its reboot")
    journal += row(1700000009000000 - hour, 9 * 10**6, "b2", "an hour behind") + row(1, 1, "b2", [255, 1])
    lines = [Line(1700000000.25, "node1", "before its reboot"), Line(1700000009.0, "node1", "an hour behind")]
    assert list(Line.read("node1", journal)) == lines
    assert list(Line.read("node1", "")) == [], "a node that is off"


def test_a_node_says_how_its_steady_clock_stands():
    offset, boot = subprocess.run(["sh", "-c", CLOCK], capture_output=True, text=True).stdout.split()
    assert abs(float(offset) + time.monotonic() - time.time()) < 1 and re.fullmatch("[0-9a-f]{32}", boot)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("[ERROR]: Task failed: Action failed: node1 trains job one: wait\n", "node1 trains job one: wait"),
        ('fatal: [node1]: FAILED! => {"changed": false, "msg": "node1 trains job one"}', "node1 trains job one"),
        ("PLAY RECAP", "no error shown"),
    ],
)
def test_an_error_of_a_playbook_is_one_line(output, said):
    assert error_of(output) == said


# --- what is judged ----------------------------------------------------------------------------------------------
def journal(*starts: tuple[float, int, int]) -> list[Line]:
    """Each start (time, ranks, first step) makes a step each second from 3 s on, up to the next start or the end."""
    lines = []
    for (began, ranks, first), after in zip(starts, [*starts[1:], None], strict=True):
        lines.append(Line(began, "node1", f"rank 0/{ranks} node=node1 device=cpu"))
        count = STEPS - first + 1 if after is None else int(after[0] - began) - 10
        lines += [Line(began + 3 + at, "node1", f"step {first + at}/{STEPS} epoch 1 loss 1.0") for at in range(count)]
    return lines


def ledger(tmp_path: Path) -> str:
    written = Ledger(tmp_path, rows=ROWS, seed=1, active=True, resumed_at=0)
    total = 0
    for step in range(1, STEPS + 1):
        first, last = (step - 1) * BATCH, step * BATCH
        used = expected_sum(ROWS, 1, first, last)
        total = (total + used) % 2**60
        written.step(step=step, first=first, last=last, sum=used, total=total, world_size=3)
    written.flush()
    return written.file.read_text()


@pytest.fixture
def good(tmp_path) -> Facts:
    """A run of three ranks, hit at 120 s, that went on at step 15 after 5 s."""
    state = {"state": "done", "step": STEPS, "heldout_last": 1.5}
    return Facts(
        began=120.0, hit=120.5, lines=journal((100, 3, 1), (122, 3, 15)), state=state, ledger=ledger(tmp_path),
        weights="abc", boot=None, problems=[], notes=[],
        job=JOB,
    )  # fmt: skip


ROW = Row(number=1, fault="worker_killed", moment="mid")


def test_a_fault_that_ends_as_promised_passes(good):
    row = judge(ROW, "worker", good, good)
    assert (row.result, row.problems, row.ranks, row.weights) == ("pass", [], "3", "equal")
    assert (row.seconds, row.goal, row.heldout_difference) == (5.0, 10, 0.0)


def test_another_number_of_ranks_may_differ_by_rounding(good):
    other = {**good.state, "heldout_last": 1.5009}
    fewer = dataclasses.replace(good, lines=journal((100, 3, 1), (122, 2, 15)), weights="xyz", state=other)
    row = judge(ROW, "loud", fewer, good)
    assert (row.result, row.ranks, row.weights, row.goal) == ("pass", "3>2", "differ", 35)


BROKEN = {
    "not done": ({"state": {"state": "failed", "step": 7, "reason": "lost"}}, "failed 7/40: lost"),
    "never ended": ({"state": {}}, "did not end 0/40"),
    "no ledger": ({"ledger": ""}, "ledger: no ledger"),
    "other bits": ({"weights": "xyz"}, "the parameters differ"),
    "no model": ({"weights": ""}, "no parameters were exported"),
    "other loss": ({"state": {"state": "done", "step": 40, "heldout_last": 1.4989}}, "the held-out loss is -0.001"),
    "no number": ({"state": {"state": "done", "step": 40, "heldout_last": float("nan")}}, "the held-out loss is nan"),
    "too slow": ({"began": 114.0}, "11 s to the next step, 10 are allowed"),
    "no step after it": ({"began": 500.0, "hit": 501.0}, "no step after the fault"),
    "the moment never came": ({"began": 0.0, "hit": 0.0, "problems": ["Missed: no"]}, "Missed: no"),
    "a problem on the way": ({"problems": ["left on node3: a worker"]}, "left on node3"),
}


@pytest.mark.parametrize(("change", "problem"), BROKEN.values(), ids=BROKEN)
def test_a_fault_that_ends_otherwise_fails(good, change, problem):
    row = judge(ROW, "worker", dataclasses.replace(good, **change), good)
    assert row.result == "FAIL"
    assert any(said.startswith(problem) for said in row.problems), row.problems


UNTOUCHED = journal((100, 3, 1))
FEWER = journal((100, 3, 1), (122, 2, 15))
WITHOUT_EFFECT = {
    "nobody was started again": ({"lines": UNTOUCHED}, {"restarts": True}, "no worker was started again"),
    "all were started again": ({}, {"restarts": False}, "the workers were started again"),
    "nobody was lost": ({}, {"left": 2}, "steps were made by [3] ranks, and 2 were to be left"),
    "more were lost": ({"lines": FEWER}, {"left": 1}, "steps were made by [3, 2] ranks, and 1 were to be left"),
    "no start was seen": ({"lines": UNTOUCHED[1:]}, {}, "steps were made by [0] ranks"),
}


@pytest.mark.parametrize(("change", "expected", "problem"), WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT)
def test_a_fault_that_did_not_do_what_it_says_fails(good, change, expected, problem):
    row = judge(ROW, "", dataclasses.replace(good, **change), good, **expected)
    assert any(said.startswith(problem) for said in row.problems), row.problems


def test_one_that_did_passes(good):
    assert judge(ROW, "worker", good, good, restarts=True).result == "pass"
    assert judge(ROW, "loud", dataclasses.replace(good, lines=FEWER), good, restarts=True, left=2).result == "pass"
    assert judge(ROW, "", dataclasses.replace(good, lines=UNTOUCHED), good, restarts=False).result == "pass"


def test_an_undisturbed_run_of_other_ranks_is_nothing_to_compare_with(good):
    two = dataclasses.replace(good, lines=journal((100, 2, 1)))
    assert judge(ROW, "worker", good, two).problems == ["steps were made by [3] ranks, undisturbed by [2], which is 3"]


def test_a_lost_sample_fails(good):
    lines = good.ledger.splitlines(keepends=True)
    step = json.loads(lines[20])
    lines[20] = json.dumps({**step, "sum": step["sum"] + 1}) + "\n"
    row = judge(ROW, "worker", dataclasses.replace(good, ledger="".join(lines)), good)
    assert row.ledger == "lost" and "step 20 did not use exactly samples" in row.problems[0]


def test_the_time_is_that_to_the_first_step_behind_a_restart(good):
    under_way = Line(120.6, "node1", "step 18/40 epoch 1 loss 1.0")
    assert next_step(dataclasses.replace(good, lines=sorted([*good.lines, under_way]))) == 5.0
    untouched = dataclasses.replace(good, lines=journal((100, 3, 1)))
    assert next_step(untouched) == 0.5, "nothing was started again: the next step since it was complete"
    assert sizes(journal((100, 3, 1), (122, 2, 15), (160, 3, 20))) == [3, 2, 3]


def test_the_time_limits_are_those_of_the_issue():
    assert [goal(loss, "mid", 12.0, JOB) for loss in ("worker", "loud", "silent", "boot", "")] == [10, 35, 70, 42, None]
    assert goal("hangs", "mid", None, JOB) == goal("silent", "before", None, JOB) == 20 + 20 + 30
    assert goal("hangs", "before", None, JOB) == 60 + 20 + 30, "the ranks wait longer for their first step"
    assert goal("boot", "mid", None, JOB) is None


def test_the_table_says_what_failed_and_what_was_skipped(good):
    failed = judge(ROW, "worker", dataclasses.replace(good, weights="xyz"), good)
    skipped = Row(number=20, fault="clock_set_back", moment="mid", skipped="containers have the clock of their host")
    shown = report.table([judge(ROW, "worker", good, good), failed, skipped]).splitlines()
    assert " ".join(shown[1].split()) == "1 worker_killed mid done 40/40 whole 3 equal +0e+00 5.0 s 10.0 s pass"
    assert shown[2].endswith("FAIL") and shown[3].endswith("skipped")
    assert shown[4] == "worker_killed mid: FAIL: the parameters differ from the undisturbed run's"
    assert shown[5] == "clock_set_back mid: skipped: containers have the clock of their host"
    assert shown[6] == "1 pass, 1 FAIL, 1 skipped"
    rows = json.loads(report.document([failed, skipped], SimpleNamespace(kind="vm", settings=(), job=JOB)))["rows"]
    assert [row["result"] for row in rows] == ["FAIL", "skipped"]


# --- a case ------------------------------------------------------------------------------------------------------
class NoCluster:
    """In place of the nodes: keeps what is asked of them."""

    nodes, head, job, slower = ("node1", "node2", "node3"), "node1", JOB, 1

    def __init__(self):
        self.done: list[str] = []

    def __getattr__(self, name):
        def answer(*words, **_):
            self.done.append(f"{name} {' '.join(map(str, words))}".strip())
            return {"watch": {"step": 0, "workers": [1], "held": 7}, "busy": {}, "everywhere": {}}.get(name, "")

        return answer


def cut(case: Case) -> Struck:
    case.sh("node3", "cut")
    case.later(lambda: case.sh("node3", "mend at the end"))
    yield
    case.sh("node3", "mend")


@pytest.fixture
def tried(tmp_path, monkeypatch):
    def run(moment: str, strike=cut) -> tuple[list[str], Facts]:
        monkeypatch.setattr("tests.faults.case.FOLDER", tmp_path)
        monkeypatch.setattr("tests.faults.case.secrets.token_hex", lambda _: "ab12")
        monkeypatch.setattr("tests.faults.case.json.loads", lambda text: {"nodes": ["node2"]})
        cluster = NoCluster()
        training = SimpleNamespace(failed=lambda: "", give_up=lambda: None)
        monkeypatch.setattr(Case, "train", lambda case: (cluster.done.append("train"), case.trainings.append(training)))
        facts = Case(cluster, Fault(number=1, name="cut", what="", strike=strike), moment).run()
        return [line for line in cluster.done if line.split()[0] in ("train", "sh", "ended", "put_right")], facts

    return run


def test_a_case_strikes_lets_the_writer_go_mends_and_puts_right(tried):
    done, facts = tried("save")
    assert done[0] == "train"
    order = [
        "sh node3 cut",
        "sh node2 kill -CONT 7",
        "sh node3 mend",
        "ended cut-save-ab12 420",
        "sh node3 mend at the end",
    ]
    assert done[1:7] == [*order, "put_right"] and facts.problems == [] and facts.began < facts.hit


def test_a_lab_that_breaks_afterwards_ends_one_case_and_not_the_matrix(tried, monkeypatch):
    def broken(cluster) -> None:
        raise TimeoutError("node3 does not answer SSH")

    monkeypatch.setattr(NoCluster, "put_right", broken, raising=False)
    _, facts = tried("mid")
    assert facts.problems == ["TimeoutError: node3 does not answer SSH"]


def test_a_job_that_is_taken_up_again_is_seen(tried, monkeypatch):
    """By a node that was off when the job ended, and has booted since."""
    ended = {"state": "done", "step": STEPS, "run_id": "cut-1"}
    monkeypatch.setattr(NoCluster, "ended", lambda *_: {"nodes": ["node2"], **ended}, raising=False)
    _, facts = tried("mid")
    assert len(facts.problems) == 1 and facts.problems[0].startswith("it was taken up again after its end: {'run_id'")


def test_a_fault_that_breaks_is_mended_all_the_same(tried):
    def broken(case: Case) -> Struck:
        yield from cut(case)
        raise RuntimeError("the lab is gone")

    done, facts = tried("mid", broken)
    assert facts.problems == ["RuntimeError: the lab is gone"]
    assert done[-3:-1] == ["sh node3 mend at the end", "put_right"]


# --- what is done to disks ---------------------------------------------------------------------------------------
def test_a_disk_is_full_without_being_filled_and_has_room_again(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(tmp_path)]
    if (mounted := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"needs root to mount a small disk: {mounted.stderr.strip()}")
    try:
        (tmp_path / "file").write_bytes(bytes(3 << 20))
        subprocess.run(["sh", "-c", SHRINK.format(path=tmp_path)], check=True)
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "more").write_bytes(bytes(1 << 20))
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path)], check=True)
        (tmp_path / "more").write_bytes(bytes(1 << 20))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_damage_shows_in_the_content_alone(tmp_path):
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        file.write_bytes(bytes(4000))
        os.utime(file, ns=(10**18, 10**18))
    subprocess.run(["sh", "-c", damage(f"echo {files[0]}", FLIP)], check=True)
    subprocess.run(["sh", "-c", damage(f"echo {files[1]}", TRUNCATE)], check=True)
    assert files[0].read_bytes() == bytes(2000) + b"\xff" + bytes(1999)
    assert files[1].read_bytes() == bytes(3000)
    assert [file.stat().st_mtime_ns for file in files] == [10**18, 10**18]


def test_the_data_are_the_same_each_time(tmp_path):
    data.make(tmp_path / "one")
    data.make(tmp_path / "two")
    assert (tmp_path / "one/train.jsonl").read_bytes() == (tmp_path / "two/train.jsonl").read_bytes()
    assert len((tmp_path / "one/heldout.jsonl").read_text().splitlines()) == data.ROWS["heldout.jsonl"]


def test_memory_of_a_gpu_that_is_still_held_is_left_behind(tmp_path):
    """nvidia-smi is a stand-in that prints what the real one prints of one process; elsewhere there is none."""

    def looked():
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", cycles.LOOK], env=os.environ | {"PATH": path}, capture_output=True, text=True
        )
        return {"node1": {line for line in done.stdout.splitlines() if line.startswith("gpu")}}

    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\necho "$*" >> "$0.asked"\n')
    smi.chmod(0o755)
    before = looked()
    smi.write_text(smi.read_text() + "echo 4711, 10234 MiB\n")
    assert cycles.left_behind(before, looked()) == ["node1: gpu process 4711, 10234 MiB"]
    asked = (tmp_path / "nvidia-smi.asked").read_text().splitlines()
    assert asked == ["--query-compute-apps=pid,used_memory --format=csv,noheader"] * 2


def test_what_cycles_leave_behind_is_named_but_for_the_unit_at_rest():
    before = {"node1": {"port 0.0.0.0:22", "unit minos-store.service active running"}, "node2": set()}
    rest = {"unit minos-train@cycles.service inactive dead", "unit minos-nvidia.service inactive dead"}
    after = {"node1": before["node1"] | rest, "node2": {"unit minos-train@cycles.service failed failed", "port 1"}}
    assert cycles.left_behind(before, after) == [
        "node2: port 1",
        "node2: unit minos-train@cycles.service failed failed",
    ]
