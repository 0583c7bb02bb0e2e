"""Thirty kills at random moments: each start goes on from a valid checkpoint, and nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import torch

from training.checkpoints import Checkpoints
from training.files import sha256_of

KILLS = 30
ELEMENTS = 400_000  # of each of two int64 tensors: a save takes long enough to be killed within


class Counting:
    """A state that says which step it is of: every element is its index times the step."""

    def __init__(self) -> None:
        self.values = torch.zeros(ELEMENTS, dtype=torch.int64)

    def set(self, step: int) -> None:
        torch.mul(torch.arange(ELEMENTS), step, out=self.values)

    def is_of(self, step: int) -> bool:
        return torch.equal(self.values, torch.arange(ELEMENTS) * step)

    def state_dict(self) -> dict:
        return {"values": self.values}

    def load_state_dict(self, state: dict) -> None:
        self.values = state["values"].clone()


def train(number: int, shared: Path, local: Path, log: Path, steps: float) -> None:
    """Start `number` of the run: restore, then a save after each step, up to `steps`. `log` says what it found."""
    torch.set_num_threads(1)
    model, optimizer = Counting(), Counting()
    with log.open("a") as lines, contextlib.redirect_stdout(lines):
        checkpoints = Checkpoints(shared, local_dir=local)
        restored = checkpoints.restore({"model": model, "optimizer": optimizer})
        step = restored.step if restored else 0
        right = model.is_of(step) and optimizer.is_of(step) and (not restored or restored.extra == {"step": step})
        print(f"start {number} began at {step} {'right' if right else 'WRONG'}", flush=True)
        while step < steps:
            step += 1
            model.set(step)
            optimizer.set(step)
            checkpoints.save(step, {"model": model, "optimizer": optimizer}, extra={"step": step}, wait=step == steps)
            while checkpoints._writing and step < steps:
                time.sleep(0.001)
        checkpoints.close()


def flaw_of(path: Path) -> str:
    """What is wrong with a visible checkpoint; one that goes away meanwhile has no flaw."""
    inode = path.stat().st_ino
    try:
        for name, digest in json.loads((path / "manifest.json").read_text())["sha256"].items():
            if sha256_of(path / name) != digest:
                return f"{path}: {name} does not match"
        return ""
    except (OSError, ValueError) as error:
        time.sleep(0.01)
        with contextlib.suppress(FileNotFoundError):
            return f"{path}: {error}" if path.stat().st_ino == inode else ""
        return ""


def visible(root: Path) -> list[Path]:
    """Every checkpoint below `root`, the newest first, while others add and remove some."""
    found = [Path(parent, name) for parent, names, _ in os.walk(root) for name in names if name.startswith("step-")]
    return sorted(found, key=lambda path: path.name, reverse=True)


def look_all_the_time(roots: tuple[Path, Path], ended, results: Path) -> None:
    """A reader: reads every checkpoint that it can see, over and over, until `ended` is set."""
    seen, flaws = set(), []
    while not ended.is_set():
        for path in [*visible(roots[0]), *visible(roots[1])]:
            with contextlib.suppress(FileNotFoundError):
                seen.add(path.name)
                flaws += filter(None, [flaw_of(path)])
        time.sleep(0.01)
    results.write_text(json.dumps({"seen": len(seen), "flaws": flaws}))


def children_of(pid: int) -> dict[str, int]:
    """The writer and the courier of a start: module name -> process id."""
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                command = Path(f"/proc/{child}/cmdline").read_text()
                found |= {name: int(child) for name in ("writer", "courier") if f"training.storage.{name}" in command}
    return found


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def newest_valid(directory: Path) -> int:
    """The newest step whose files match its manifest, 0 without any."""
    for path in visible(directory):
        with contextlib.suppress(FileNotFoundError):
            if not flaw_of(path):
                return int(path.name[5:])
    return 0


def wait_for_a_moment(chance: random.Random, log: Path, number: int, directory: Path) -> None:
    """Return at some moment of start `number`: mostly during its saves, sometimes before it has looked around."""
    deadline = time.monotonic() + 20
    if chance.random() < 0.8:
        while f"start {number} began" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        before, more = newest_valid(directory), chance.randint(1, 3)
        while newest_valid(directory) < before + more and time.monotonic() < deadline:
            time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.2))


def test_thirty_kills(tmp_path):
    shared, local, log = tmp_path / "shared/checkpoints", tmp_path / "local", tmp_path / "log"
    shared.mkdir(parents=True)
    local.mkdir()
    log.touch()
    chance = random.Random(3)
    processes = multiprocessing.get_context("forkserver")  # torch is imported once, each start is a fork
    processes.set_forkserver_preload(["training.checkpoints"])
    ended, looked = processes.Event(), tmp_path / "looked"
    reader = processes.Process(target=look_all_the_time, args=((shared, local), ended, looked))
    reader.start()
    inside_a_save, expected, helpers = 0, [0], set()
    for number in range(1, KILLS + 1):
        start = processes.Process(target=train, args=(number, shared, local, log, float("inf")))
        start.start()
        wait_for_a_moment(chance, log, number, local)
        if chance.random() < 0.3:
            kill(*list(children_of(start.pid).values())[:1])
            time.sleep(chance.uniform(0, 0.3))
        children = children_of(start.pid)
        helpers |= set(children.values())
        with_all = chance.random() < 0.6  # a power cut, or the whole unit; else the helpers see their input end
        kill(start.pid, *(children.values() if with_all else ()))
        start.join()
        inside_a_save += any(".writing-step-" in parent for parent, _, _ in os.walk(local))
        if number % 5 == 0:  # the machine is lost, the run goes on elsewhere from what has arrived
            local.rename(tmp_path / f"lost-{number}")
            local.mkdir()
            shutil.rmtree(tmp_path / f"lost-{number}", ignore_errors=True)  # somebody may be writing still
        expected.append(max(newest_valid(local), newest_valid(shared)))
    last = processes.Process(target=train, args=(KILLS + 1, shared, local, log, expected[-1] + 5))
    last.start()
    last.join(60)
    ended.set()
    reader.join(20)

    said, looks = log.read_text(), json.loads(looked.read_text())
    found = [line.split() for line in said.splitlines() if " began at " in line]
    print(f"{inside_a_save} of {KILLS} kills inside a save, {len(found)} starts looked, {looks['seen']} steps seen")
    assert last.exitcode == 0, said
    for _, number, _, _, step, verdict in found:
        assert verdict == "right", said
        assert int(step) >= expected[int(number) - 1], said
    assert len(found) > KILLS // 2
    assert looks["flaws"] == []
    assert looks["seen"] > KILLS // 2
    assert inside_a_save >= 8
    deadline = time.monotonic() + 40
    while any("training.storage" in command_of(pid) for pid in helpers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def command_of(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
