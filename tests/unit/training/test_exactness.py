"""What must not depend on the number of processes, on stops or on crashes. Real processes, real torchrun."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.training.conftest import Started, metrics_of, state_of
from training import ledger
from training.rendezvous import connected, is_closed

STEPS = 120
WATCHED = ("-m", "tests.unit.training.watched")
LONG = (f"steps={STEPS}", "save_every=20", "dropout=0.1")


def parameters_sha(job_dir: Path) -> str:
    """Hash of every parameter and optimizer number after the last step."""
    directory = job_dir / f"checkpoints/step-{STEPS:08d}"
    tensors = {
        f"{part}.{name}": tensor
        for part in ("model", "optimizer")
        for name, tensor in load_file(directory / f"{part}.safetensors").items()
    }
    assert len(tensors) > 40  # model, and three numbers per parameter in the optimizer
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
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


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("micro_batch", "packing"),
    [(2, "true"), (8, "false")],
    ids=["packed, 3+3+2 micro-batches", "ragged, 1+1+0 micro-batches"],
)
def test_gradient_of_three_unequal_ranks_is_that_of_one(micro_batch, packing, start, tmp_path):
    gradients, losses = {}, {}
    for processes in (1, 3):
        job_dir = tmp_path / str(processes)
        job_dir.mkdir()
        run = start(
            processes,
            job_dir,
            *("steps=10", f"micro_batch={micro_batch}", f"packing={packing}", "dropout=0.1"),
            entry=WATCHED,
            environment={"WATCH": str(job_dir)},
        )
        assert run.wait() == 0, run.output
        gradients[processes] = torch.cat([part.flatten() for part in torch.load(job_dir / "gradients-1.pt")]).double()
        losses[processes] = [row["loss"] for row in metrics_of(job_dir, "step")]
        assert state_of(job_dir)["world_size"] == processes
    difference = (gradients[3] - gradients[1]).norm() / gradients[1].norm()
    assert 0 < difference <= 1e-6  # not 0: three ranks do sum in another order, or nothing was compared
    assert losses[1][0] - losses[1][-1] > 0.05  # it learns, so equal losses say something
    assert losses[3] == pytest.approx(losses[1], abs=1e-6, rel=0)


@pytest.mark.timeout(240)
def test_other_numbers_of_ranks_lose_and_repeat_no_sample(start, tmp_path):
    settings = ("epochs=48", "micro_batch=2", "dropout=0.1", "save_every=100")
    undisturbed = start(2, tmp_path / "undisturbed", *settings)
    job_dir = tmp_path / "job"
    job_dir.mkdir()
    changes = []
    for number, processes in enumerate((2, 3, 1)):
        environment = {"WATCH": str(job_dir), "START": str(number)}
        run = start(processes, job_dir, *settings, entry=WATCHED, environment=environment)
        if processes > 1:
            run.until(lambda: after_step(job_dir, changes[-1] + 12 if changes else 10))
            os.kill(run.worker_pids()[0], signal.SIGTERM)
            run.wait()
            changes.append(state_of(job_dir)["step"])
        else:
            assert run.wait() == 0, run.output
    assert undisturbed.wait() == 0, undisturbed.output
    state, wanted = state_of(job_dir), state_of(tmp_path / "undisturbed")
    assert (state["state"], state["step"]) == ("done", wanted["step"])
    assert len(changes) == 2 and changes[0] + 10 < changes[1] < state["step"] - 10
    losses = [row["loss"] for row in metrics_of(job_dir, "step")]
    others = [row["loss"] for row in metrics_of(tmp_path / "undisturbed", "step")]
    for change in changes:
        assert losses[change : change + 10] == pytest.approx(others[change : change + 10], abs=1e-6, rel=0)
    assert losses != others  # other numbers of ranks do round differently: these were other numbers of ranks
    assert state["heldout_last"] == pytest.approx(wanted["heldout_last"], abs=1e-3)
    used = Counter()
    for file in job_dir.glob("rows-*.jsonl"):
        used.update(row for line in file.read_text().splitlines() for row in json.loads(line)["rows"])
    rows = json.loads((job_dir / ledger.FILE).read_text().splitlines()[0])["rows"]
    assert used == dict.fromkeys(range(rows), 48)
    assert ledger.verify(job_dir / ledger.FILE).endswith(f"each of {rows} rows 48 times")


@pytest.mark.timeout(300)
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


@pytest.mark.timeout(300)
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


@pytest.mark.timeout(300)
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


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fault", "reason", "last_line"),
    [
        (
            "nan",
            r"the loss is not finite at step 3 on rank 1 \(lab-node\) in rows \[\d+, \d+\] of the packed data; "
            "lower lr or look at the data",
            "training.lifecycle.NonFiniteError: the loss is not finite at step 3",
        ),
        ("raise", "KeyError: 'no such column'", "KeyError: 'no such column'"),
    ],
)
def test_fault_of_one_rank_fails_the_job_and_names_it(fault, reason, last_line, start, tmp_path):
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
    assert re.fullmatch(reason, state["reason"])
    assert state["last_lines"][-1].startswith(last_line)
    assert run.output.count("nothing to do: ") == 2
    assert len(run.output.split("resumed from")) == 1
    saved = {path.name for path in (tmp_path / "job/checkpoints").glob("step-*")}
    # One that is still being written when the next is due is left out; none holds the bad step.
    assert saved and saved <= {"step-00000001", "step-00000002"}


def test_a_failed_job_sends_the_agents_of_all_nodes_home(start, store, tmp_path):
    """Under Minos: nor do the restarted workers end well, which an agent would wait for."""
    environment = {"FAULT": "raise", "MINOS_NODE": "lab-node", "MINOS_RUN_ID": "r1", "MINOS_STORE": store}
    entry = ("-m", "tests.unit.training.one_bad_rank")
    run = start(2, tmp_path / "job", "steps=10", max_restarts=1, entry=entry, environment=environment)
    assert run.wait() == 1
    assert state_of(tmp_path / "job")["reason"] == "KeyError: 'no such column'"
    assert " (lab-node): the job has failed already, this one goes too" in run.output
    assert is_closed(connected(store), "r1.0")
