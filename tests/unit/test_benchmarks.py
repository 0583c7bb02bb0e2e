"""Each benchmark at its smallest size: the candidates do the same work, and the figures are what they say."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, loss_memory, peers, training_speed
from benchmarks.clock import Clock
from benchmarks.measure import measure_once

SMALL = ["--seq-len", "64", "--rows", "3", "--micro-batch", "3", "--steps", "3", "--warm-up", "1", "--rounds", "1"]


def rows_of(output: str) -> dict[str, list[str]]:
    """First cell -> the other cells of each line of the Markdown table in `output`."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line[:1] == "|"]
    return {name: cells for name, *cells in lines[2:]}


def number(text: str) -> float:
    return float(text.replace(",", "").rstrip("%"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "train.jsonl"
    rows = [{"instruction": f"count to {n}", "response": " ".join(map(str, range(n % 9)))} for n in range(1, 60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows if row["response"]))
    return file


def test_the_clock_leaves_the_warm_up_out():
    clock = Clock(warm_up=2, steps=4)
    for tokens, pause in ((1000, 0.03), (1000, 0.03), (30, 0.01), (50, 0.01)):
        clock.saw(tokens)
        time.sleep(pause)
        clock.step_done()
    figures = clock.figures()
    assert figures["tokens_per_step"] == 40
    assert 0.01 <= figures["step_s"] < 0.03
    assert figures["tokens_per_s"] == pytest.approx(40 / figures["step_s"])
    assert figures["tokens_per_cpu_s"] > figures["tokens_per_s"]  # it slept
    with pytest.raises(ValueError, match="4 of 4 steps cannot be measured"):
        Clock(warm_up=4, steps=4)


def test_padding_counts_for_nobody():
    class Trainer:
        def training_step(self, model, inputs):
            return "done"

    clock = Clock(warm_up=1, steps=2)
    trainer = peers.counting(Trainer, clock)()
    inputs = {"input_ids": torch.zeros(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    assert (trainer.training_step(None, inputs), clock.tokens) == ("done", 5)
    trainer.training_step(None, {"input_ids": torch.zeros(1, 4)})  # flat rows have no mask
    assert clock.tokens == 9


@pytest.mark.timeout(240)
def test_we_and_trainer_do_the_same_work(pairs, capsys):
    training_speed.main(["ragged", "--pairs", str(pairs), *SMALL, "--only", "ours, 3 packed", "Trainer padding, 2"])
    ours, trainer = rows_of(capsys.readouterr().out).values()
    lengths = [len(f"# {row['instruction']}\n{row['response']}") + 1 for row in map(json.loads, pairs.open())]
    assert number(trainer[2]) == pytest.approx(8 * sum(lengths) / len(lengths), rel=0.3)  # 8 documents in a step
    assert 96 < number(ours[2]) <= 192  # three rows of 64 at most
    assert number(ours[3]) == pytest.approx(number(trainer[3]), abs=0.2)  # the same weights, hardly trained
    assert number(ours[4]) == 1
    assert number(trainer[4]) == pytest.approx(number(ours[1]) / number(trainer[1]), abs=0.01)


@pytest.mark.timeout(240)
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is in the environment of benchmarks/ only")
def test_trl_with_and_without_packing(pairs, capsys):
    training_speed.main(
        ["ragged", "--pairs", str(pairs), *SMALL, "--only", "SFTTrainer packing, 1", "SFTTrainer padding"]
    )
    packing, padding = rows_of(capsys.readouterr().out).values()
    assert 96 < number(packing[2]) <= 192
    assert number(padding[2]) > 0


@pytest.mark.timeout(240)
def test_the_loss_takes_less_memory_than_all_logits(capsys):
    loss_memory.main(["--hidden", "32", "--tokens", "1024", "--rounds", "1", "--weights", "frozen"])
    (cells,) = rows_of(capsys.readouterr().out).values()
    ours, plain, share = map(number, cells[2:5])
    logits = 1024 * 32000 * 4 / 1e6
    assert 2 * logits < plain < 4 * logits
    assert ours < 1.5 * logits
    assert share == pytest.approx(ours / plain, abs=0.01)


def test_the_shapes_are_the_models_that_they_are_named_after():
    one, eight = gpu.SHAPES["1b-full"], gpu.SHAPES["8b-lora"]
    assert one.parameters() == pytest.approx(1.236e9, rel=1e-3)  # tied: the table is the head
    assert eight.parameters() + eight.vocabulary * eight.hidden == pytest.approx(8.03e9, rel=1e-3)
    attention = 6 * 16 * 2048 * 4096
    assert gpu.flops_per_token(one, 4096, frozen=False) == 6 * one.parameters() + attention
    assert gpu.flops_per_token(one, 4096, frozen=True) == 4 * one.parameters() + attention


@pytest.mark.timeout(240)
def test_gpu_benchmark_in_small(capsys):
    shape = ["--vocabulary", "259", "--hidden", "32", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--mlp", "32"]
    run = ["--seq-len", "64", "--micro-batch", "1", "--accumulation", "2", "--steps", "3", "--warm-up", "1"]
    gpu.main(["8b-lora", "--rounds", "1", "--peak", "1e-3", *shape, *run])
    output = capsys.readouterr().out
    flops = number(re.search(r"([\d.e-]+) GFLOP per token", output)[1]) * 1e9
    for cells in rows_of(output).values():
        assert number(cells[2]) / 100 == pytest.approx(number(cells[0]) * flops / 1e9, rel=0.02)
        assert number(cells[4]) == pytest.approx(5.56, abs=0.05)  # ln 259: random weights
    assert list(rows_of(output)) == ["ours", "Trainer"]


def test_a_measurement_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"ended with 1:\nno such model"):
        measure_once(["-c", "import sys; sys.exit('no such model')"])
