"""The example of a user's own script under the real launcher: killed, started again, equal to one nobody killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]
STEPS = 1500


def start(directory: Path, log: Path) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["--directory", directory / "shared", "--local-dir", directory / "local", "--steps", str(STEPS)]
    # The paths as a user has them: not where the script is, not installed.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("a") as stream:
        return subprocess.Popen(
            [*launcher, ROOT / "training/examples/own_script.py", *options],
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=environment,
        )


def processes_below(pid: int) -> list[int]:
    """Every process that `pid` started, directly or not."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *processes_below(child)]
    return found


def test_killed_and_started_again_it_ends_with_the_same_weights(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    log = tmp_path / "log"
    assert start(whole, log).wait(200) == 0, log.read_text()
    run = start(killed, log)
    try:
        deadline = time.monotonic() + 150
        while not any((killed / "local").glob("*/step-*")):
            assert run.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
    finally:
        for pid in [run.pid, *processes_below(run.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.wait()
    assert not (killed / "shared/weights.pt").exists()
    assert start(killed, log).wait(200) == 0, log.read_text()
    done = re.findall(r"done after (\d+) steps from (\d+), mean loss (\S+)", log.read_text())
    assert done[0][:2] == (str(STEPS), "0")
    assert 0 < int(done[1][1]) < STEPS
    assert done[0][2] == done[1][2]
    weights = [torch.load(directory / "shared/weights.pt", weights_only=True) for directory in (whole, killed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
