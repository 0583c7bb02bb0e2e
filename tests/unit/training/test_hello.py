"""The recipe hello: the same on one process and on three, through a kill, a signal and a stop."""

from __future__ import annotations

import functools
import re
import signal
from pathlib import Path

import pytest

from tests.unit.training.conftest import ROOT, Started, state_of

HELLO = ROOT / "training/configs/hello.yaml"
EVEN = ("min_lr_fraction=1", "log_every=20")  # the learning rate does not depend on the number of steps
ENDLESS = (*EVEN, "steps=1000000", "save_every=20")


@pytest.fixture
def hello(start):
    return functools.partial(start, config=HELLO, entry=("-m", "training.hello"))


def loss_of(run: Started) -> float:
    return float(re.findall(r"loss ([\d.]+)", run.output)[-1])


def saved(job_dir: Path) -> list[str]:
    return sorted(path.name for path in job_dir.glob("checkpoints/step-*"))


@pytest.mark.timeout(400)
def test_three_processes_fit_the_curve_through_a_kill_as_one_does_without(hello, tmp_path):
    job_dir = tmp_path / "three"
    run = hello(3, job_dir, *ENDLESS)
    run.until(lambda: len(saved(job_dir)) == 2, 150)
    run.kill()
    steps = 20 * (int(saved(job_dir)[-1].removeprefix("step-")) // 20) + 40

    run = hello(3, job_dir, *EVEN, f"steps={steps}")
    assert run.wait(150) == 0, run.output
    resumed = int(re.search(r"begins at step (\d+)/", run.output)[1])
    assert 40 <= resumed < steps and resumed % 20 == 0
    state = state_of(job_dir)
    assert (state["state"], state["step"], state["steps"], state["world_size"]) == ("done", steps, steps, 3)
    assert Path(state["plot"]).read_bytes().startswith(b"\x89PNG")
    assert state["plot"] == str(job_dir / "plots/hello.png")

    alone = hello(1, tmp_path / "one", *EVEN, f"steps={steps}")
    assert alone.wait() == 0, alone.output
    assert loss_of(alone) == pytest.approx(loss_of(run), rel=0.02, abs=2e-4)
    assert state_of(tmp_path / "one")["loss"] == pytest.approx(state["loss"], rel=0.02)


@pytest.mark.timeout(240)
def test_a_signal_ends_this_start_and_the_stop_file_the_job(hello, tmp_path):
    run = hello(1, tmp_path / "job", *ENDLESS)
    run.until(lambda: state_of(tmp_path / "job").get("step", 0) >= 20)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 75, run.output
    state = state_of(tmp_path / "job")
    assert state["state"] == "running"

    run = hello(1, tmp_path / "job", *ENDLESS)
    run.until(lambda: state_of(tmp_path / "job").get("step", 0) > state["step"])
    (tmp_path / "job/stop-requested").touch()
    assert run.wait() == 0, run.output
    assert f"begins at step {state['step']}/" in run.output
    stopped = state_of(tmp_path / "job")
    assert stopped["state"] == "stopped" and stopped["step"] > state["step"]
    assert saved(tmp_path / "job")[-1] == f"step-{stopped['step']:08d}"

    (tmp_path / "job/stop-requested").unlink()
    run = hello(1, tmp_path / "job", *ENDLESS)
    run.until(lambda: state_of(tmp_path / "job").get("step", 0) > stopped["step"])
    (tmp_path / "job/stop-requested").touch()
    run.process.send_signal(signal.SIGTERM)  # as `systemctl stop` after a recorded stop: the wish decides
    assert run.wait() == 0, run.output
    assert state_of(tmp_path / "job")["state"] == "stopped"


@pytest.mark.timeout(120)
def test_a_run_without_steps_is_refused(hello, tmp_path):
    run = hello(1, tmp_path / "job", "steps=0")
    assert run.wait() == 2
    assert run.output.endswith(
        "command line: steps: 0 cannot be used; hello has no epochs: write 1 or more, such as 400\n"
    )
