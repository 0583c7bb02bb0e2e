"""A small disk that is really full: nothing valid is lost, training is told and goes on, the next save tries again."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.unit.training.conftest import ROOT, state_of
from training.checkpoints import Checkpoints, Share
from training.files import sha256_of, wait_for_room
from training.state import JobState
from training.storage import steps, writer

MEGABYTE = 1 << 20


class Held:
    """About 4 MB that say which step they are of."""

    def __init__(self, step: int = 0):
        self.weight = torch.full((MEGABYTE,), float(step))

    def state_dict(self) -> dict:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict) -> None:
        self.weight = state["weight"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB, of which the checkpoints keep 16 MB free: room for three of 4 MB."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", mounted], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"needs root to mount a small disk: {mount.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", "-l", mounted], check=True)


def steps_in(directory: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in directory.glob("step-*"))


def restored_step(directory: Path) -> int:
    held = Held()
    restored = Checkpoints(directory).restore({"model": held})
    assert torch.equal(held.weight, Held(restored.step).weight)
    return restored.step


def fill(disk: Path, megabytes: int) -> Path:
    file = disk / "filler"
    file.write_bytes(bytes(megabytes * MEGABYTE))
    return file


def test_a_full_disk_is_an_alarm_until_there_is_room(small_disk, capsys):
    directory = small_disk / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.save(1, {"model": Held(1)}, wait=True)
        filler = fill(small_disk, 10)  # enough if the only valid one went
        for step in (2, 3):
            assert not checkpoints.save(step, {"model": Held(step)}, wait=True)
            assert "the disk is full, 4 MB are needed" in checkpoints.alarm
        assert [path.name for path in directory.iterdir() if path.is_dir()] == ["step-00000001"]
        filler.unlink()
        assert checkpoints.save(4, {"model": Held(4)}, wait=True)
        assert checkpoints.alarm == ""
    assert restored_step(directory) == 4
    said = capsys.readouterr().out
    assert "step-00000004 is written" in said
    assert "alarm: no checkpoint of step 2" in said


def test_with_room_for_two_the_older_one_goes_first(small_disk, capsys):
    directory = small_disk / "checkpoints"
    filler = fill(small_disk, 6)
    with Checkpoints(directory) as checkpoints:
        for step in range(1, 6):
            assert checkpoints.save(step, {"model": Held(step)}, wait=True)
            assert steps_in(directory) == ([1] if step == 1 else [step - 1, step])
        assert "no room for 3: step-00000003 went before its time" in checkpoints.alarm
        filler.unlink()
        assert checkpoints.save(6, {"model": Held(6)}, wait=True)
        assert checkpoints.alarm == ""
    assert restored_step(directory) == 6


def test_nothing_goes_when_that_would_not_help(small_disk):
    directory = small_disk / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            assert checkpoints.save(step, {"model": Held(step)}, wait=True)
        fill(small_disk, 22)
        assert not checkpoints.save(3, {"model": Held(3)}, wait=True)
    assert steps_in(directory) == [1, 2]


def test_a_damaged_one_goes_before_a_valid_one_and_the_newest_valid_one_never(small_disk):
    directory = small_disk / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            assert checkpoints.save(step, {"model": Held(step)}, wait=True)
    (directory / "step-00000002/progress.json").write_text("{}")
    fill(small_disk, 6)
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.save(3, {"model": Held(3)}, wait=True)
    assert steps_in(directory) == [1, 3]


@pytest.mark.parametrize(("unreadable", "left"), [(1, [2]), (2, [1, 2])])
def test_an_old_one_that_cannot_be_read_does_not_keep_the_next_from_being_saved(
    unreadable, left, small_disk, monkeypatch
):
    """A bad sector stays: no save ever again would be worse. One newer than all that can be read is another matter."""
    directory = small_disk / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            assert checkpoints.save(step, {"model": Held(step)}, wait=True)
    fill(small_disk, 6)

    def read(path: Path) -> str:
        if path.parent.name == f"step-{unreadable:08d}":
            raise OSError(errno.EIO, "Input/output error")
        return sha256_of(path)

    monkeypatch.setattr(steps, "sha256_of", read)
    with pytest.raises(steps.NoRoom) if len(left) == 2 else contextlib.nullcontext():
        assert steps.Steps(directory).make_room(4 * MEGABYTE) == ["step-00000001"]
    assert steps_in(directory) == left


def write_from_memory(directory: Path, elsewhere: Path) -> None:
    memory = os.memfd_create("state")
    os.ftruncate(memory, 4 * MEGABYTE)
    writer.write(steps.Steps(directory), memory, {"step": 2, "files": [["model.safetensors", 0, 4 * MEGABYTE]]})


def receive_from_elsewhere(directory: Path, elsewhere: Path) -> None:
    with Checkpoints(elsewhere) as checkpoints:
        assert checkpoints.save(2, {"model": Held(2)}, wait=True)
    steps.Steps(directory).receive(elsewhere / "step-00000002", keep=2)


@pytest.mark.parametrize("write", [write_from_memory, receive_from_elsewhere])
def test_a_disk_that_fills_up_in_the_middle_shows_nothing_and_keeps_no_half(write, small_disk, tmp_path, monkeypatch):
    directory = small_disk / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.save(1, {"model": Held(1)}, wait=True)
    # What the look at the free space promised is taken by somebody else meanwhile.
    monkeypatch.setattr(steps, "SPARE", -100 * MEGABYTE)
    filler = fill(small_disk, 26)
    with pytest.raises(OSError, match="No space left on device"):
        write(directory, tmp_path / "elsewhere")
    assert [path.name for path in directory.iterdir() if path.is_dir()] == ["step-00000001"]
    filler.unlink()
    assert restored_step(directory) == 1


def test_a_shared_directory_that_is_full_is_an_alarm_and_the_local_one_stays(small_disk, tmp_path):
    job, local = small_disk / "job", tmp_path / "local"
    JobState(job).begin(state="running")
    filler = fill(small_disk, 15)
    share = Share(job, local)
    with Checkpoints(job / "checkpoints", local_dir=local / "checkpoints", share=share) as checkpoints:
        checkpoints.restore({})
        assert checkpoints.save(1, {"model": Held(1)}, wait=True)
        deadline = time.monotonic() + 20
        while "the disk is full" not in share.alarm:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "step-00000001 stays on this machine for now" in share.alarm
        assert not share.drain(1)
        again = Checkpoints(job / "checkpoints", local_dir=local / "checkpoints", share=share)
        assert again.restore({}).step == 1
        filler.unlink()
        assert share.drain(20)
    assert restored_step(job / "checkpoints") == 1
    assert share.alarm == ""
    assert share.close(5)


def test_a_start_waits_for_room_and_says_so_once(small_disk, capsys):
    job = small_disk / "job"
    wait_for_room(job)
    assert capsys.readouterr().out == "" and list(job.iterdir()) == []
    with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(MEGABYTE))
    start = threading.Thread(target=wait_for_room, args=(job, 0.05), daemon=True)
    start.start()
    time.sleep(0.5)
    assert start.is_alive(), "it would die as soon as it recorded its start"
    (small_disk / "filler").unlink()
    start.join(10)
    told = f"alarm: {job} cannot be written to (No space left on device); waiting for room\n{job} has room again\n"
    assert capsys.readouterr().out == told and not start.is_alive() and list(job.iterdir()) == []


@pytest.mark.parametrize("recipe", ["hello", "script"])
def test_both_ways_to_start_wait_for_it(recipe, small_disk, tmp_path, start):
    job, config = small_disk / "job", ROOT / "training/configs/hello.yaml"
    overrides = ["steps=2", "log_every=1"]
    if recipe == "script":
        config, overrides = tmp_path / "own.yaml", []
        config.write_text("script: own.py\narguments: []\n")
        (tmp_path / "own.py").write_text("print('done')\n")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        while True:
            full.write(bytes(MEGABYTE))
    run = start(1, job, *overrides, config=config, entry=("-m", f"training.{recipe}"))
    run.until(lambda: "waiting for room" in run.output)
    filler.unlink()
    assert run.wait(60) == 0, run.output
    assert "has room again" in run.output and state_of(job)["state"] == "done"
