"""The job's directory kept up to date from beside the training process, and what happens when it hangs or fails."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from training.checkpoints import Checkpoints, Share
from training.checkpoints.restoring import Restored, Restoring
from training.files import sha256_of
from training.state import JobState
from training.storage import courier, steps
from training.storage.records import Records, recall
from training.storage.steps import Steps


class Held:
    """The smallest thing that has a state."""

    def __init__(self, weight: torch.Tensor | None = None):
        self.weight = weight

    def state_dict(self) -> dict:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict) -> None:
        self.weight = state["weight"]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job directory whose state has begun."""
    directory = tmp_path / "job"
    JobState(directory).begin(state="running", step=0)
    return directory


@pytest.fixture
def share(job: Path, tmp_path: Path) -> Iterator[Share]:
    share = Share(job, tmp_path / "local")
    share.watch()
    yield share
    share.close(10)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """(a mounted directory, signal(number) to the process that serves it): stopped, it answers nobody."""
    if not shutil.which("bindfs") or not Path("/dev/fuse").exists():
        pytest.skip("bindfs or /dev/fuse is missing; Debian: apt install bindfs fuse3")
    behind, mounted = tmp_path / "behind", tmp_path / "mounted"
    behind.mkdir()
    mounted.mkdir()
    # No caching, so that each look goes to the process.
    options = ["-f", "-o", "attr_timeout=0,entry_timeout=0,negative_timeout=0"]
    server = subprocess.Popen(["bindfs", *options, behind, mounted], stderr=subprocess.PIPE, text=True)
    # Whoever waits for it cannot even be killed: should that be the test itself, it goes on, and fails, in time.
    rescue = threading.Timer(60, server.send_signal, [signal.SIGCONT])
    rescue.start()
    try:
        until(lambda: mounted.is_mount() or server.poll() is not None)
        if not mounted.is_mount():
            pytest.skip(f"bindfs cannot mount here: {server.stderr.read().strip()}")
        yield mounted, server.send_signal
    finally:
        rescue.cancel()
        server.send_signal(signal.SIGCONT)
        subprocess.run(["umount", "-l", mounted], check=False, capture_output=True)
        server.terminate()
        server.wait(10)
        server.stderr.close()


def until(condition: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_newest_value_of_each_field_arrives(job, share):
    for step in range(100):
        share.state(step=step, **{"first": 1} if step == 0 else {})
    assert share.drain(10)
    state = JobState(job).read()
    assert (state["state"], state["step"], state["first"]) == ("running", 99, 1)


def test_a_job_that_has_ended_stays_so(job, share):
    JobState(job).fail("loss is not finite", "node2", 1)
    share.state(state="running", step=5)
    assert share.drain(10)
    assert JobState(job).read()["reason"] == "loss is not finite"


def test_a_stop_request_is_seen_without_asking_and_at_once_with(job, share):
    assert not share.look()
    (job / "stop-requested").touch()
    assert share.look()
    (job / "stop-requested").unlink()
    until(lambda: not share.stop_requested)


def test_records_follow(job, share):
    metrics, plot = share.records / "metrics/metrics.jsonl", share.records / "plots/loss.png"
    metrics.parent.mkdir()
    plot.parent.mkdir()
    plot.write_bytes(b"picture")
    with metrics.open("w") as stream:
        for number in range(5):
            stream.write(f"{number}\n")
            stream.flush()
            assert share.drain(10)
            assert (job / "metrics/metrics.jsonl").read_text() == metrics.read_text()
    assert (job / "plots/loss.png").read_bytes() == b"picture"


def test_records_travel_by_what_was_added(tmp_path):
    own, shared = tmp_path / "own", tmp_path / "shared"
    own.mkdir()
    (own / "metrics.jsonl").write_text("1\n2\n")
    (own / ".metrics.tmp").write_text("half")
    records = Records(own, shared)
    records.bring()
    first = (shared / "metrics.jsonl").stat().st_ino
    with (own / "metrics.jsonl").open("a") as stream:
        stream.write("3\n")
    records.bring()
    assert ((shared / "metrics.jsonl").read_text(), (shared / "metrics.jsonl").stat().st_ino) == ("1\n2\n3\n", first)
    # Replaced as a whole, by something longer: what was there does not count.
    (own / "new").write_text("4\n5\n6\n7\n")
    (own / "new").rename(own / "metrics.jsonl")
    records.bring()
    assert (shared / "metrics.jsonl").read_text() == "4\n5\n6\n7\n"
    # Somebody else has changed the copy: no appending to that.
    (shared / "metrics.jsonl").write_text("x")
    with (own / "metrics.jsonl").open("a") as stream:
        stream.write("8\n")
    records.bring()
    assert (shared / "metrics.jsonl").read_text() == "4\n5\n6\n7\n8\n"
    assert [path.name for path in shared.iterdir()] == ["metrics.jsonl"]


def test_a_node_that_becomes_the_first_fetches_the_records(job, tmp_path):
    here, there = Share(job, tmp_path / "here"), Share(job, tmp_path / "there")
    here.watch()
    (here.records / "metrics.jsonl").write_text("1\n")
    assert here.close(10)
    there.recall("metrics.jsonl", "absent.jsonl")
    assert (there.records / "metrics.jsonl").read_text() == "1\n"
    # The newer one is right, whichever it is.
    (there.records / "metrics.jsonl").write_text("1\n2\n")
    recall(job / "metrics.jsonl", there.records / "metrics.jsonl")
    assert (there.records / "metrics.jsonl").read_text() == "1\n2\n"


def test_without_a_local_directory_records_are_written_in_place(job):
    share = Share(job)
    assert share.records == job
    share.state(step=3)
    assert share.close(10)
    share.state(step=4)  # too late, and no harm
    assert JobState(job).read()["step"] == 3


def test_what_the_state_cannot_hold_is_refused_and_the_rest_still_arrives(job, share):
    with pytest.raises(TypeError, match="not JSON serializable"):
        share.state(path=job)
    share.state(path=str(job))
    assert share.drain(10)
    assert JobState(job).read()["path"] == str(job)


def test_other_ranks_do_nothing(tmp_path):
    share = Share(tmp_path / "job", tmp_path / "local", active=False)
    share.watch()
    share.state(step=1)
    share.push(tmp_path, tmp_path, 2)
    assert not share.look()
    assert share.close()
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_pushed_and_the_state_names_the_newest(job, share, tmp_path):
    shared = job / "checkpoints"
    with Checkpoints(shared, local_dir=tmp_path / "local/checkpoints", share=share) as checkpoints:
        for step in range(1, 6):
            assert checkpoints.save(step, {"model": Held(torch.full((9,), float(step)))}, wait=True)
    assert share.drain(10)
    assert JobState(job).read()["checkpoint"] == str(shared / "step-00000005")
    assert len(list(shared.glob("step-*"))) == 2
    held = Held()
    restored = Checkpoints(shared).restore({"model": held})
    assert restored.step == 5
    assert torch.equal(held.weight, torch.full((9,), 5.0))


def test_what_an_earlier_start_could_not_bring_arrives_when_nothing_is_left_to_train(job, tmp_path):
    """It ended with a full share, all steps done: the next start makes none, and says nothing of its own."""
    local, shared = tmp_path / "local/checkpoints", job / "checkpoints"
    with Checkpoints(shared, local_dir=local) as checkpoints:
        assert checkpoints.save(1, {"model": Held(torch.ones(9))}, wait=True)
    newest = next(local.glob("*/step-00000001"))
    shutil.rmtree(shared / "step-00000001")
    share = Share(job, tmp_path / "local")
    share.records.mkdir(parents=True)
    (share.records / "ledger.jsonl").write_text("1\n2\n")
    with Checkpoints(shared, local_dir=local, share=share) as checkpoints:
        assert checkpoints.restore({"model": Held()}).path == newest
    assert share.close(10)
    assert (job / "ledger.jsonl").read_text() == "1\n2\n"
    assert Steps(shared).problem(shared / "step-00000001") is None


@pytest.mark.parametrize("refused", [True, False])
def test_the_good_one_of_another_rank_is_no_reason_to_bring_ones_own(refused, job, share, tmp_path, monkeypatch):
    """Rank 0 could not use its own; on the machine whose copy all got it has the same path."""
    local, shared = tmp_path / "local/checkpoints", job / "checkpoints"
    with Checkpoints(shared, local_dir=local, share=share) as checkpoints:
        assert checkpoints.save(1, {"model": Held(torch.ones(9))}, wait=True)
        assert share.drain(10)
    own = next(local.glob("*/step-00000001"))
    shutil.rmtree(shared / "step-00000001")

    def found(search: Restoring, _: object) -> Restored:
        search.refused |= {own} if refused else set()
        return Restored(step=1, epoch=0, extra={}, path=own)

    monkeypatch.setattr(Restoring, "restore", found)
    with Checkpoints(shared, local_dir=local, share=share) as checkpoints:
        checkpoints.restore({})
    assert share.drain(10) and (shared / "step-00000001").exists() != refused


def test_records_alone_arrive_at_the_end_too(job, tmp_path):
    share = Share(job, tmp_path / "local")
    share.records.mkdir(parents=True)
    (share.records / "ledger.jsonl").write_text("1\n")
    assert share.close(10)
    assert (job / "ledger.jsonl").read_text() == "1\n"


def test_a_damaged_local_checkpoint_does_not_arrive(job, share, tmp_path, capsys):
    local, shared = tmp_path / "local/checkpoints", job / "checkpoints"
    with Checkpoints(local) as checkpoints:
        checkpoints.save(1, {"model": Held(torch.ones(9))})
    file = local / "step-00000001/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    share.push(local / "step-00000001", shared, 2)
    until(lambda: "does not match its hash" in share.alarm)
    assert list(shared.iterdir()) == []
    assert not share.close(10)
    assert "alarm: not everything has arrived" in capsys.readouterr().out


def test_a_courier_that_dies_is_followed_by_one_that_knows_all(job, share):
    share.state(step=1)
    assert share.drain(10)
    first = share._courier.pid
    os.kill(first, signal.SIGSTOP)
    share.state(step=2, lost=False)
    os.kill(first, signal.SIGKILL)
    assert share.drain(10)
    assert share._courier.pid != first
    assert JobState(job).read()["step"] == 2


@contextlib.contextmanager
def away(job: Path) -> Iterator[None]:
    job.rename(job.with_name("away"))
    yield
    job.with_name("away").rename(job)


@contextlib.contextmanager
def unwritable_state(job: Path) -> Iterator[None]:
    content = (job / "state.json").read_text()
    (job / "state.json").unlink()
    (job / "state.json").mkdir()
    yield
    # At once: the courier may write between the two, and what it wrote must stay.
    (job / "back").write_text(content)
    (job / "state.json").rename(job / "not a file")
    with contextlib.suppress(FileExistsError):
        os.link(job / "back", job / "state.json")


@pytest.mark.parametrize("failing", [away, unwritable_state])
def test_a_share_that_fails_is_an_alarm_until_it_is_back(failing, job, share, capsys):
    assert share.drain(10)
    with failing(job):
        share.state(step=8)
        until(lambda: "cannot be used" in share.alarm)
    until(lambda: share.alarm == "")
    assert share.drain(10)
    assert JobState(job).read()["step"] == 8
    said = capsys.readouterr().out
    assert (said.count("alarm: "), said.count("answers again")) == (1, 1)


def test_nothing_waits_for_a_share_that_hangs_and_all_arrives_afterwards(hanging, tmp_path, capsys):
    mounted, send_signal = hanging
    job = mounted / "job"
    JobState(job).begin(state="running", step=0)
    share = Share(job, tmp_path / "local", patience=2)
    held = Held(torch.ones(200_000))
    with Checkpoints(job / "checkpoints", local_dir=tmp_path / "local/checkpoints", share=share) as checkpoints:
        checkpoints.restore({})
        longest = {}
        try:
            for phase, number in (("answering", signal.SIGCONT), ("hanging", signal.SIGSTOP)):
                send_signal(number)
                seconds = []
                for step in range(60):
                    began = time.perf_counter()
                    held.weight.add_(1)
                    share.state(step=len(longest) * 60 + step, loss=1.5)
                    (share.records / "metrics.jsonl").open("a").write(json.dumps({"step": step}) + "\n")
                    if step % 10 == 9:
                        checkpoints.save(len(longest) * 60 + step, {"model": held})
                    _ = share.stop_requested
                    seconds.append(time.perf_counter() - began)
                    time.sleep(0.03)
                longest[phase] = sorted(seconds)[-3]
            until(lambda: "has not answered" in share.alarm)
            assert not share.drain(0.5)
            assert longest["hanging"] < max(0.1, 5 * longest["answering"]), longest
            assert checkpoints.save(200, {"model": held}, wait=True)
        finally:
            send_signal(signal.SIGCONT)
        assert share.drain(20)
    assert share.alarm == ""
    assert JobState(job).read()["step"] == 119
    assert len((job / "metrics.jsonl").read_text().splitlines()) == 120
    again = Held()
    assert Checkpoints(job / "checkpoints").restore({"model": again}).step == 200
    assert torch.equal(again.weight, held.weight)
    assert share.close(10)
    said = capsys.readouterr().out
    assert (said.count("alarm: "), said.count("answers again")) == (1, 1)


def test_closing_while_it_hangs_says_what_is_missing_and_leaves(hanging, tmp_path, capsys):
    mounted, send_signal = hanging
    JobState(mounted / "job").begin(state="running", step=0)
    share = Share(mounted / "job", tmp_path / "local", patience=0.2)
    assert share.drain(10)
    send_signal(signal.SIGSTOP)
    share.state(step=1)
    began = time.monotonic()
    assert not share.close(1)
    assert time.monotonic() - began < 10
    assert "alarm: not everything has arrived" in capsys.readouterr().out
    send_signal(signal.SIGCONT)


def test_a_picture_that_is_drawn_anew_is_never_taken_for_one_that_grew(tmp_path):
    """A disk gives the next file the number of one that was replaced; whoever missed the one between sees it again."""
    own, shared = tmp_path / "own", tmp_path / "shared"
    own.mkdir()
    records = Records(own, shared)
    picture, lines = own / "loss.png", own / "metrics.jsonl"
    for file in (picture, lines):
        file.write_bytes(b"first")
    records.bring()
    for file in (picture, lines):
        number = file.stat().st_ino
        file.write_bytes(b"second, longer")  # in place: the same number, as after an odd number of others
        assert file.stat().st_ino == number
    records.bring()
    assert (shared / "loss.png").read_bytes() == b"second, longer"
    assert (shared / "metrics.jsonl").read_bytes() == b"firstd, longer", "of what is appended to only the end travels"


def test_a_checkpoint_that_has_arrived_is_not_read_again(job, tmp_path, monkeypatch):
    """With each one that follows, over the network that the gradients go by."""
    local, shared, read, answers = tmp_path / "local", tmp_path / "shared", [], []
    store = Checkpoints(local, keep=5)
    orders = []
    for step in (1, 2, 3):
        store.save(step, {"held": Held(torch.ones(3))}, wait=True)
        orders.append({"push": str(local / f"step-{step:08d}"), "directory": str(shared), "keep": 5})
    store.close()
    # One of its hands alone, and in this process.
    idle = SimpleNamespace(Thread=lambda **_: SimpleNamespace(start=lambda: None), Condition=threading.Condition)
    monkeypatch.setattr(courier, "threading", idle)
    monkeypatch.setattr(courier, "answer", lambda **said: answers.append(said))
    monkeypatch.setattr(steps, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    hand, left = courier.Courier(job, tmp_path / "records", 30), iter(orders)
    monkeypatch.setattr(hand.changed, "wait_for", lambda _: setattr(hand, "push", next(left)))
    with pytest.raises(StopIteration):
        hand.checkpoints()
    assert [Path(said["pushed"]).name for said in answers] == [path.name for path in sorted(shared.iterdir())]
    assert len(answers) == 3 and read and not [path for path in read if path.is_relative_to(shared)]
