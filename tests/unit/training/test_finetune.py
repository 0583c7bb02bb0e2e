"""One process from the command line to the files it leaves, and the mistakes it answers with one line."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests.unit.training.conftest import metrics_of, state_of
from training import data, evaluation, ledger
from training.config import Config, load
from training.distributed import is_peer_failure
from training.finetune import oddities
from training.models import load_model, load_tokenizer
from training.optimizer import build_optimizer, learning_rate
from training.state import JobState


def first_step_in_plain_torch(config: Config, directory: Path) -> tuple[float, float]:
    """(mean loss, gradient norm) of the first global batch, document by document, without any of our step."""
    tokenizer = load_tokenizer(config)
    corpus = data.obtain(config, tokenizer, prepared=None, local_dir=directory)
    # The attention that the model came with, so that ours is compared with something else.
    model = load_model(dataclasses.replace(config, attention="mask"), tokenizer, torch.device("cpu"))
    losses = []
    for row in data.sample_indices(len(corpus.train), config.seed, 0, config.global_batch):
        batch = corpus.train.batch([row])
        for first, last in itertools.pairwise(batch.bounds.tolist()):
            log_probabilities = model(input_ids=batch.tokens[:, first:last]).logits[0].log_softmax(-1)
            labels = batch.labels[0, first:last]
            counts = labels >= 0
            losses.append(-log_probabilities[counts].gather(-1, labels[counts, None])[:, 0])
    loss = torch.cat(losses).mean()
    loss.backward()
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm().item()


@pytest.mark.timeout(300)
def test_a_run_leaves_what_it_promises_and_is_done_once(start, tiny_config, tmp_path):
    job_dir = tmp_path / "job"
    settings = ("packing=false", "epochs=2", "eval_every=3", "keep=2", "save_every=2")
    run = start(1, job_dir, *settings, environment={"MINOS_NODE": "n1"})
    assert run.wait() == 0, run.output
    state = state_of(job_dir)
    assert (state["state"], state["step"], state["steps"]) == ("done", 8, 8)  # 2 x 60 rows in batches of 16
    assert (state["nodes"], state["world_size"], state["backend"]) == (["n1"], 1, "gloo")
    assert state["heldout_last"] < state["heldout_first"]
    assert Path(state["plot"]).read_bytes().startswith(b"\x89PNG")
    assert state["sample"] == (job_dir / "sample.txt").read_text().removesuffix("\n")
    assert state["sample"].startswith("heldout 0\n")
    assert state["config_sha256"] == load(job_dir / "config.yaml").sha256()
    names = sorted(path.name for path in (job_dir / "checkpoints").glob("step*"))
    assert len(names) == 2 and names[-1] == "step-00000008"  # one may be left out while another is being written
    assert list((job_dir / "tensorboard").iterdir())
    assert [row["step"] for row in metrics_of(job_dir, "step")] == list(range(1, 9))
    loss, norm = first_step_in_plain_torch(load(job_dir / "config.yaml"), tmp_path)
    assert metrics_of(job_dir, "step")[0]["loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics_of(job_dir, "step")[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert [row["step"] for row in metrics_of(job_dir, "eval")] == [0, 3, 4, 6, 8]
    assert [row["epoch"] for row in metrics_of(job_dir, "epoch")] == [1, 2]
    assert "rank 0/1 node=n1 device=cpu backend=gloo world_size=1 pid=" in run.output
    assert "epoch 2 done at step 8: train loss " in run.output
    assert "total " in run.output and "mean step " in run.output

    again = start(1, job_dir, *settings)
    assert again.wait() == 0
    assert again.output.strip().endswith("says done at step 8/8; another --job-dir trains anew")

    more = start(1, job_dir, "packing=false", "epochs=3", "eval_every=3", "keep=2", "save_every=2")
    assert more.wait() == 0, more.output
    # The last batch of the second epoch was not full: it is over, and the third begins with the next row.
    assert (state_of(job_dir)["state"], state_of(job_dir)["step"]) == ("done", 12)
    assert ledger.verify(job_dir / ledger.FILE) == "180 samples in 12 steps: each of 60 rows 3 times"
    state = state_of(job_dir)

    tuned = start(1, tmp_path / "tuned", f"model={job_dir}/model", "steps=2", "lr=1e-4")
    assert tuned.wait() == 0, tuned.output
    first = state_of(tmp_path / "tuned")["heldout_first"]
    assert first == pytest.approx(state["heldout_last"], abs=1e-5)

    assert (job_dir / "model/README.md").read_text().count(f"{state['heldout_last']:.4f}") == 1

    JobState(job_dir).change(lambda state: state | {"state": "starting", "run_id": "r2", "config_sha256": ""})
    other = start(1, job_dir, *settings[:1], "epochs=3", "seed=2", environment={"MINOS_RUN_ID": "r2"})
    assert other.wait() == 2
    assert "was made with seed 1, now it is 2; put it back or use another job directory" in other.output


@pytest.mark.timeout(60)
def test_plain_text(start, tmp_path):
    given = Path(os.environ.get("MINOS_TEST_DATA", Path(__file__).parents[4] / "shared/data")) / "tinyshakespeare.txt"
    if not given.exists():
        pytest.skip(f"no {given}; set MINOS_TEST_DATA to a directory with tinyshakespeare.txt")
    text = tmp_path / "text.txt"
    text.write_text(given.read_text()[:40_000])
    config = yaml.safe_load((Path(__file__).parents[3] / "training/configs/text.yaml").read_text())
    file = tmp_path / "text.yaml"
    file.write_text(yaml.safe_dump(config | {"data_train": str(text), "steps": 12, "global_batch": 8}))
    run = start(1, tmp_path / "job", "scratch_layers=1", "sample_tokens=20", config=file)
    assert run.wait() == 0, run.output
    state = state_of(tmp_path / "job")
    assert 5.0 < state["heldout_first"] < 6.0  # 259 equally likely tokens would be 5.56
    assert state["heldout_last"] < state["heldout_first"] - 0.5


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stepz=3", "command line: stepz: unknown key; did you mean steps?"),
        ("data_heldout=/nowhere/a.jsonl", "/nowhere/a.jsonl: no such file"),
        ("model=/nowhere/model", "tokenizer: /nowhere/model cannot be loaded"),
        ("backend=nccl", "backend: nccl needs CUDA"),
    ],
)
def test_mistakes_end_with_one_line_and_are_recorded(override, expected, start, tmp_path):
    if override == "backend=nccl" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    run = start(1, tmp_path / "job", override, environment={"MINOS_NODE": "n1", "HF_HUB_OFFLINE": "1"})
    assert run.wait() == 2
    lines = run.output.splitlines()
    assert lines[-1].startswith(f"rank 0 (n1): {expected}")
    assert "Traceback" not in run.output
    state = state_of(tmp_path / "job")
    assert (state["state"], state["failed_rank"], state["failed_node"]) == ("failed", 0, "n1")
    assert state["reason"].startswith(expected)


@pytest.mark.timeout(60)
def test_ranks_with_different_data_do_not_start(start, tmp_path):
    code = (
        "import dataclasses, os; from training import data, finetune\n"
        "obtain = data.obtain\n"
        "def other(*a, **k):\n"
        "    corpus = obtain(*a, **k)\n"
        "    return dataclasses.replace(corpus, fingerprint=corpus.fingerprint + os.environ['RANK'])\n"
        "data.obtain = other\n"
        "finetune.main()\n"
    )
    entry = tmp_path / "entry.py"
    entry.write_text(code)
    root = str(Path(__file__).parents[3])
    run = start(2, tmp_path / "job", "steps=2", entry=(str(entry),), environment={"PYTHONPATH": root})
    assert run.wait() != 0
    state = state_of(tmp_path / "job")
    assert state["state"] == "failed"
    here = socket.gethostname()
    assert state["reason"].startswith(
        f"{here} (rank 1) does not run the same as {here} (rank 0): data; make them equal"
    )
    header, row = (line.split() for line in state["last_lines"])
    assert header == [here, "(rank", "0)", here, "(rank", "1)"]
    assert row[0] == "data"
    assert row[1:] == [row[1], row[1][:-1] + "1"], "the versions are there to be read"


@pytest.mark.timeout(60)
def test_data_that_one_rank_cannot_read_are_the_reason_and_not_the_wait_of_the_other(start, tmp_path):
    code = (
        "import os; from training import data, finetune\n"
        "obtain = data.obtain\n"
        "def broken(*a, **k):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise data.DataError('x.bin: is damaged')\n"
        "    return obtain(*a, **k)\n"
        "data.obtain = broken\n"
        "finetune.main()\n"
    )
    entry = tmp_path / "entry.py"
    entry.write_text(code)
    root = str(Path(__file__).parents[3])
    run = start(2, tmp_path / "job", "steps=2", entry=(str(entry),), environment={"PYTHONPATH": root})
    assert run.wait() != 0
    state = state_of(tmp_path / "job")
    assert (state["state"], state["failed_rank"], state["reason"]) == ("failed", 1, "x.bin: is damaged")


@pytest.mark.timeout(60)
def test_a_first_copy_that_takes_longer_than_a_lost_machine_may_is_no_lost_machine(start, tmp_path):
    code = (
        "import time; from training import finetune; from training.checkpoints.snapshot import Snapshot\n"
        "reserve = Snapshot._reserve\n"
        "def slowly(snapshot, size):\n"
        "    time.sleep(4 if size > len(snapshot._memory) else 0)\n"
        "    reserve(snapshot, size)\n"
        "Snapshot._reserve = slowly\n"
        "finetune.main()\n"
    )
    entry = tmp_path / "entry.py"
    entry.write_text(code)
    root = str(Path(__file__).parents[3])
    settings = ("steps=4", "save_every=2", "timeout_step=2")
    run = start(2, tmp_path / "job", *settings, entry=(str(entry),), environment={"PYTHONPATH": root})
    assert run.wait() == 0, run.output
    assert (state_of(tmp_path / "job")["state"], state_of(tmp_path / "job")["step"]) == ("done", 4)


def test_learning_rate_rises_then_falls_to_its_floor():
    config = Config(data_train="a.txt", lr=1.0, warmup_steps=4, min_lr_fraction=0.1)
    rates = [learning_rate(config, step, 20) for step in range(1, 21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(before > after for before, after in itertools.pairwise(rates[3:]))
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(config, 12, 20) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)


def test_weight_decay_is_for_matrices():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    optimizer = build_optimizer(Config(data_train="a.txt", weight_decay=0.3), list(model.parameters()))
    decays = {
        parameter.dim(): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert decays == {2: 0.3, 1: 0.0}


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), True),
        (torch.distributed.DistNetworkError("failed to connect"), True),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("Timed out waiting 5000ms for recv operation to complete"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (
            torch.distributed.DistBackendError("NCCL error in: x.cpp:93, invalid usage (run with ...)\nDuplicate GPU"),
            False,
        ),
        (torch.distributed.DistBackendError("NCCL error in: x.cpp:93, remote process exited"), True),
        (KeyError("x"), False),
    ],
)
def test_a_lost_peer_is_told_from_a_fault(error, lost):
    assert is_peer_failure(error) is lost


def test_a_gradient_that_is_no_number_changes_nothing():
    parameter = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = build_optimizer(Config(data_train="a.txt"), [parameter])
    for found, expected in ((0.0, False), (1.0, True)):
        before, moments = parameter.detach().clone(), optimizer.state[parameter].get("exp_avg", torch.zeros(())).clone()
        parameter.grad = torch.full((3, 3), math.nan if found else 1.0)
        optimizer.found_inf = torch.tensor(found)
        optimizer.step()
        assert torch.equal(parameter, before) is expected
    assert torch.equal(optimizer.state[parameter]["exp_avg"], moments)
    assert optimizer.state[parameter]["step"] == 1


def test_what_works_and_is_hardly_meant_is_said():
    config = Config(data_train="a.txt", warmup_steps=10, global_batch=16, micro_batch=4)
    assert list(oddities(config, rows=160, steps=11, ranks=4)) == []
    assert ["warmup_steps is 10, and the run has 3 steps (40 rows" in line for line in oddities(config, 40, 3, 4)] == [
        True
    ]
    assert ["2 of 6 processes have no rows" in line for line in oddities(config, 160, 11, 6)] == [True]


class Counted:
    """In place of held-out documents: their number is what the loss adds up."""

    lengths = torch.tensor([8] * 5)

    def __len__(self):
        return 5

    def batch(self, rows):
        return SimpleNamespace(inputs=lambda device: (len(rows),))

    def counted(self, rows):
        return len(rows)


@pytest.mark.parametrize("together", [1, 2, 32])
def test_ranks_meet_during_a_long_evaluation_as_often_as_each_other(together, monkeypatch):
    """Also where the last round has nothing for one of them."""
    monkeypatch.setattr(evaluation, "TOGETHER", together)
    config, met, sums = Config(data_train="a.txt", seq_len=8, micro_batch=1), [], []
    monkeypatch.setattr(evaluation.distributed, "agree", lambda place, value: met.append(place.rank))
    monkeypatch.setattr(
        evaluation.distributed, "sum_over_ranks", lambda place, value: sums.append(float(value)) or [5.0]
    )
    model = torch.nn.Module()
    model.forward = lambda count: torch.tensor(float(count))
    for rank in (0, 1):
        place = SimpleNamespace(rank=rank, world_size=2, device=torch.device("cpu"))
        assert evaluation.heldout_loss(model, Counted(), config, place) == 1.0
    assert met.count(0) == met.count(1) == 3 // together
    assert sums == [3.0, 2.0]
