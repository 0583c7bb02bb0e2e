"""Extra memory of the loss at a large vocabulary: our SummedLoss beside plain logits and cross-entropy.

    python -m benchmarks.loss_memory [--vocabulary 32000] [--hidden 512 1024 2048] [--tokens 2048 4096]

The model is a Llama without decoder blocks, so that a norm, the head and the loss are all there is; its embedding is
not trained. `extra` is the peak of a forward and a backward above what is there before; the buffer for the gradient of
the head is there before, as DDP keeps it. `frozen` is LoRA's case: the head has no gradient, only the hidden states do.
Each measurement is a process of its own: on a CPU its resident memory, on a GPU torch's own count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measure import interleave, median
from training.config import Config
from training.data import IGNORED
from training.models import SummedLoss

LOSSES = ("ours", "plain")
WEIGHTS = ("trained", "frozen")


def resident(field: str) -> int:
    """Bytes of `field` of this process: VmRSS now, VmHWM at most.

    Not getrusage's ru_maxrss: it outlives exec, so a child starts with the peak of whoever started it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


class Memory:
    """Bytes that this process uses now and used at most."""

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"

    def now(self) -> int:
        return torch.cuda.memory_allocated() if self.on_gpu else resident("VmRSS")

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.on_gpu else resident("VmHWM")


def build(options: argparse.Namespace, device: torch.device) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """(model, function that computes its mean loss over one row of random tokens)."""
    hidden, tokens = options.hidden[0], options.tokens[0]
    settings = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=hidden,
        num_attention_heads=max(1, hidden // 64),
        num_hidden_layers=0,
        max_position_embeddings=tokens,
        tie_word_embeddings=False,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(settings).to(device)
    model.get_input_embeddings().requires_grad_(False)
    model.get_output_embeddings().requires_grad_(options.weights == ["trained"])
    row = torch.randint(options.vocabulary, (1, tokens), device=device)
    labels = row.roll(-1)
    labels[0, -1] = IGNORED
    if options.loss == "plain":
        return model, lambda: functional.cross_entropy(model(input_ids=row, use_cache=False).logits[0], labels[0])
    loss = SummedLoss(model, Config(data_train="none.txt"))  # no setting but the precision matters here
    bounds = torch.tensor([0, tokens], dtype=torch.int32, device=device)
    positions = torch.arange(tokens, device=device)[None]
    return model, lambda: loss(row, labels, positions, bounds, tokens) / (tokens - 1)


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Extra MB of one forward and backward, its CPU seconds and its loss."""
    memory, (model, compute) = Memory(device), build(options, device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)  # ones: pages of zeros would not be there yet
    before, began = memory.now(), time.process_time()
    loss = compute()
    loss.backward()
    mean, seconds = loss.item(), time.process_time() - began
    return {"extra_mb": (memory.peak() - before) / 1e6, "cpu_s": seconds, "loss": mean}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loss", choices=LOSSES, help="measure only this one, once, into --output")
    parser.add_argument("--weights", choices=WEIGHTS, nargs="+", default=WEIGHTS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    if options.loss:
        figures = measure(options, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        options.output.write_text(json.dumps(figures), encoding="utf-8")
        return
    print("| weights | hidden | tokens | extra MB, ours | plain | share | CPU s, ours | plain |")
    print("|---|---|---|---|---|---|---|---|")
    for weights, hidden, tokens in itertools.product(options.weights, options.hidden, options.tokens):
        sizes = ["--hidden", str(hidden), "--tokens", str(tokens), "--vocabulary", str(options.vocabulary)]
        command = ["-m", "benchmarks.loss_memory", *sizes, "--weights", weights, "--loss"]
        found = interleave({name: [*command, name] for name in LOSSES}, options.rounds)
        extra, cpu = ([median(found[name], key) for name in LOSSES] for key in ("extra_mb", "cpu_s"))
        row = f"{extra[0]:,.0f} | {extra[1]:,.0f} | {extra[0] / extra[1]:.2f} | {cpu[0]:.1f} | {cpu[1]:.1f}"
        print(f"| {weights} | {hidden} | {tokens} | {row} |", flush=True)


if __name__ == "__main__":
    main()
