"""How a start ends that went well: with what it has said, and without taking Python apart, which can abort it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.unit.training.conftest import ROOT

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
