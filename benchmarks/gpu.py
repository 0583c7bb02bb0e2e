"""Tokens per second, MFU and peak memory of our loop beside Hugging Face's Trainer on one GPU, from random weights.

    python -m benchmarks.gpu 1b-full [--peak 989] [--micro-batch 4] [--rounds 3] ...
    python -m benchmarks.gpu 8b-lora ...

Rows of `--seq-len` tokens are all full, so no candidate pads; bf16 in forward and backward. Every size can be set, so
the same file runs small on a CPU. MFU is what the model needs per token, times tokens per second, over `--peak`
TFLOP/s (dense bf16; 989 is an H100's or H200's, SXM):

    full: 6 N + 6 layers x width x seq_len        LoRA: 4 N + the same for attention

with N the weights that take part in a matrix product (no embedding table, but the head), `width` all heads together,
and causal attention counted as the half that it needs. Activations that are computed twice count once.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import string
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import Figures, interleave, median
from benchmarks.workload import TOKENIZER, Shape, make_model, write_config, write_documents

SHAPES = {
    "1b-full": Shape(vocabulary=128256, hidden=2048, layers=16, heads=32, kv_heads=8, mlp=8192),  # Llama 3.2 1B
    "8b-lora": Shape(vocabulary=128256, hidden=4096, layers=32, heads=32, kv_heads=8, mlp=14336, tied=False),  # 3.1 8B
}
MICRO_BATCH = {"1b-full": 4, "8b-lora": 1}  # rows; what 80 GB hold without gradient checkpointing
PEAK_TFLOPS = 989


def flops_per_token(shape: Shape, seq_len: int, *, frozen: bool) -> float:
    """What one token needs, forward and backward; `frozen` weights have no gradient of their own."""
    return (4 if frozen else 6) * shape.parameters() + 6 * shape.layers * shape.hidden * seq_len


def candidates_of(options: argparse.Namespace, directory: Path) -> dict[str, list[str]]:
    """Label -> command line; model, config and documents are in `directory`."""
    common = ["--steps", str(options.steps), "--warm-up", str(options.warm_up)]
    inputs = ["--documents", str(directory / "documents.jsonl"), "--model", str(directory / "model")]
    sizes = ["--micro-batch", str(options.micro_batch), "--accumulation", str(options.accumulation)]
    kind = ["--precision", "bf16", "--seq-len", str(options.seq_len), *sizes]
    if options.case.endswith("lora"):
        kind += ["--lora-rank", str(options.lora_rank)]
    ours = ["-m", "benchmarks.ours", "--config", str(directory / "config.yaml"), "--job-dir", "{scratch}", *common]
    ours += [f"steps={options.steps}"]
    trainer = ["-m", "benchmarks.peers", "trainer", *inputs, *common, *kind]
    candidates = {"ours": [*ours, "compile=false"], "Trainer": trainer}
    if options.compile:
        candidates |= {"ours, compiled": [*ours, "compile=true"], "Trainer, compiled": [*trainer, "--compile"]}
    return candidates


def prepare(options: argparse.Namespace, shape: Shape, directory: Path) -> None:
    """Random weights, random text for all steps and our config, in `directory`."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32  # half the disk; weights are trained in fp32
    make_model(shape, options.seq_len, directory / "model", dtype)
    rows = options.micro_batch * options.accumulation
    length = round((options.steps + 1) * rows * options.seq_len * 1.2)  # a tenth is held out
    letters = "".join(random.Random(1).choices(string.ascii_letters, k=length))
    (directory / "text.txt").write_text(letters, encoding="ascii")
    config = write_config(
        directory / "config.yaml",
        model=str(directory / "model"),
        tokenizer=TOKENIZER,
        data_train=str(directory / "text.txt"),
        seq_len=options.seq_len,
        micro_batch=options.micro_batch,
        global_batch=rows,
        precision="bf16",
        **({"tuning": "lora", "lora_rank": options.lora_rank} if options.case.endswith("lora") else {}),
    )
    write_documents(config, directory)


def table(figures: dict[str, list[Figures]], flops: float, peak_tflops: float) -> str:
    lines = ["| candidate | tokens/s | s per step | MFU | peak GB | loss |", "|---|---|---|---|---|---|"]
    for name, found in figures.items():
        speed = median(found, "tokens_per_s")
        mfu = speed * flops / (peak_tflops * 1e12)
        memory = f"{median(found, 'peak_gb'):.1f}" if "peak_gb" in found[0] else "-"
        step, loss = median(found, "step_s"), median(found, "loss")
        lines.append(f"| {name} | {speed:,.0f} | {step:.3f} | {mfu:.1%} | {memory} | {loss:.3f} |")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> tuple[argparse.Namespace, Shape]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each candidate")
    parser.add_argument("--peak", type=float, default=PEAK_TFLOPS, help="dense bf16 TFLOP/s of the card")
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, help="rows per forward pass")
    parser.add_argument("--accumulation", type=int, default=4, help="forward passes per step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--compile", action="store_true", help="measure both with torch.compile, too")
    for field in dataclasses.fields(Shape):
        if field.name != "tied":
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, help="instead of the case's own")
    options = parser.parse_args(arguments)
    options.micro_batch = options.micro_batch or MICRO_BATCH[options.case]
    given = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(Shape)}
    sizes = {name: size for name, size in given.items() if size is not None}
    return options, dataclasses.replace(SHAPES[options.case], **sizes)


def main(arguments: list[str] | None = None) -> None:
    options, shape = parse_arguments(arguments)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    flops = flops_per_token(shape, options.seq_len, frozen=options.case.endswith("lora"))
    print(f"{device}: {options.case}, {shape.parameters() / 1e9:.4g} B weights, {flops / 1e9:.4g} GFLOP per token")
    with tempfile.TemporaryDirectory() as temporary:
        prepare(options, shape, Path(temporary))
        figures = interleave(candidates_of(options, Path(temporary)), options.rounds)
    print(table(figures, flops, options.peak))


if __name__ == "__main__":
    main()
