"""How a start ends that went well: with what it has said, and without taking Python apart, which can abort it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.unit.training.conftest import ROOT
from training import lifecycle

PROGRAM = """
import atexit
from training import lifecycle

def recipe(config, folders):
    atexit.register(print, "taken apart")
    print("its last line", end="")
    return {outcome!r}

lifecycle.leave(lifecycle.run_recipe("training.nothing", "", recipe))
"""


@pytest.mark.parametrize(("outcome", "status"), [("done", 0), ("stopped", 0), ("leaving", 75)])
def test_a_start_ends_as_it_is(outcome, status, tmp_path):
    arguments = ["--config", str(ROOT / "training/configs/hello.yaml"), "--job-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(outcome=outcome), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (status, "its last line"), done.stderr


def test_what_is_left_for_the_last_checkpoint(monkeypatch):
    now = time.monotonic()
    assert lifecycle.seconds_to_leave(now) == 60
    monkeypatch.setenv("MINOS_STOP_SECONDS", "270")
    assert 239 < lifecycle.seconds_to_leave(now) <= 240
    assert 139 < lifecycle.seconds_to_leave(now - 100) <= 140
    assert lifecycle.seconds_to_leave(now - 300) == 60
