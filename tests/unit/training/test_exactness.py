"""What must not depend on the number of processes, on stops or on crashes. Real processes, real torchrun."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.unit.training.conftest import Started, metrics_of, state_of

STEPS = 120
LONG = (f"steps={STEPS}", "save_every=20", "dropout=0.1")


def parameters_sha(job_dir: Path) -> str:
    """Hash of every parameter and optimizer number after the last step."""
    directory = job_dir / f"checkpoints/step-{STEPS:08d}"
    digest = hashlib.sha256()
    model = torch.load(directory / "model.pt", weights_only=True)
    optimizer = torch.load(directory / "optimizer.pt", weights_only=True)["state"]
    moments = {f"{index}.{key}": value for index, state in optimizer.items() for key, value in state.items()}
    for name, tensor in sorted((model | moments).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def uninterrupted(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Job directory of three processes that nothing happened to."""
    import sys

    job_dir = tmp_path_factory.mktemp("uninterrupted")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    command += ["-m", "training.finetune", "--config", str(tiny_config), "--job-dir", str(job_dir), *LONG]
    run = Started(command, job_dir / "log", {})
    try:
        assert run.wait() == 0, run.output
    finally:
        run.kill()
    return job_dir


def after_step(job_dir: Path, step: int) -> bool:
    """Whether the run in `job_dir` has trained up to `step`."""
    state = state_of(job_dir)
    return state.get("state") == "running" and state.get("step", 0) >= step


@pytest.mark.timeout(120)
@pytest.mark.parametrize("micro_batch", [2, 8], ids=["3+3+2 micro-batches", "1+1+0 micro-batches"])
def test_three_processes_agree_with_one(micro_batch, start, tmp_path):
    losses, norms = {}, {}
    for processes in (1, 3):
        job_dir = tmp_path / str(processes)
        run = start(processes, job_dir, "steps=10", f"micro_batch={micro_batch}", "dropout=0.1")
        assert run.wait() == 0, run.output
        losses[processes] = [row["loss"] for row in metrics_of(job_dir, "step")]
        norms[processes] = [row["grad_norm"] for row in metrics_of(job_dir, "step")]
        assert state_of(job_dir)["world_size"] == processes
    assert len(losses[1]) == len(losses[3]) == 10
    assert losses[1][0] - losses[1][-1] > 0.05  # it learns, so equal losses say something
    assert losses[3] == pytest.approx(losses[1], abs=1e-6, rel=0)
    assert norms[3] == pytest.approx(norms[1], rel=1e-4)  # AdamW forgives a wrong scale, so the losses do not show it


@pytest.mark.timeout(120)
def test_sigterm_and_resume_equals_uninterrupted_bit_for_bit(start, uninterrupted, tmp_path):
    run = start(3, tmp_path / "job", *LONG)
    run.until(lambda: after_step(tmp_path / "job", 25))
    os.kill(run.worker_pids()[1], signal.SIGTERM)
    assert run.wait() != 0
    state = state_of(tmp_path / "job")
    left_at = state["step"]
    assert state["state"] == "running"
    assert state["reason"] == f"left at step {left_at} after a signal; goes on at the next start"
    assert 25 <= left_at < STEPS
    assert (tmp_path / f"job/checkpoints/step-{left_at:08d}/manifest.json").exists()
    again = start(3, tmp_path / "job", *LONG)
    assert again.wait() == 0, again.output
    assert f"(step {left_at}/{STEPS})" in again.output
    assert state_of(tmp_path / "job")["state"] == "done"
    assert "reason" not in state_of(tmp_path / "job")
    assert parameters_sha(tmp_path / "job") == parameters_sha(uninterrupted)
    steps = [row["step"] for row in metrics_of(tmp_path / "job", "step")]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.timeout(120)
def test_recorded_stop_ends_the_job_and_can_be_taken_back(start, uninterrupted, tmp_path):
    job_dir = tmp_path / "job"
    run = start(3, job_dir, *LONG)
    run.until(lambda: after_step(job_dir, 1))
    (job_dir / "stop-requested").touch()
    assert run.wait() == 0, run.output
    stopped_at = state_of(job_dir)["step"]
    assert state_of(job_dir)["state"] == "stopped"
    assert f"stopped at step {stopped_at}/{STEPS}" in run.output
    assert 1 <= stopped_at < STEPS
    (job_dir / "stop-requested").unlink()
    again = start(3, job_dir, *LONG)
    assert again.wait() == 0, again.output
    assert state_of(job_dir)["state"] == "done"
    assert parameters_sha(job_dir) == parameters_sha(uninterrupted)


@pytest.mark.timeout(120)
def test_killed_worker_costs_nothing_but_time(start, uninterrupted, tmp_path):
    job_dir = tmp_path / "job"
    run = start(3, job_dir, *LONG, max_restarts=2, environment={"MINOS_RUN_ID": "r1"})
    run.until(lambda: after_step(job_dir, 45))
    before = run.worker_pids()
    os.kill(before[2], signal.SIGKILL)
    assert run.wait() == 0, run.output
    assert set(run.worker_pids().values()).isdisjoint(before.values())
    assert f"resumed from {job_dir}/checkpoints/step-" in run.output
    state = state_of(job_dir)
    assert (state["state"], state["step"], state["run_id"]) == ("done", STEPS, "r1")
    assert "failed_rank" not in state
    steps = [row["step"] for row in metrics_of(job_dir, "step")]
    assert steps == list(range(1, STEPS + 1))  # the steps done twice are there once
    assert parameters_sha(job_dir) == parameters_sha(uninterrupted)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", "the loss is not finite at step 3 on rank 1 (lab-node); lower lr or look at the data of that step"),
        ("raise", "KeyError: 'no such column'"),
    ],
)
def test_fault_of_one_rank_fails_the_job_and_names_it(fault, reason, start, tmp_path):
    environment = {"FAULT": fault, "MINOS_NODE": "lab-node", "MINOS_RUN_ID": "r1"}
    run = start(
        2,
        tmp_path / "job",
        "steps=10",
        "save_every=1",
        max_restarts=3,
        entry=("-m", "tests.unit.training.one_bad_rank"),
        environment=environment,
    )
    assert run.wait() == 0, run.output  # the restarted workers see that the job has failed and go quietly
    state = state_of(tmp_path / "job")
    assert (state["state"], state["failed_rank"], state["failed_node"]) == ("failed", 1, "lab-node")
    assert state["reason"] == reason
    assert run.output.count("nothing to do: ") == 2
    assert len(run.output.split("resumed from")) == 1
    newest = sorted((tmp_path / "job/checkpoints").iterdir())[-1]
    assert json.loads((newest / "progress.json").read_text())["step"] == 2  # before the bad step reached anything
