"""What a save costs the training loop: ours beside torch.save and beside none, in turn, in one process.

    python -m benchmarks.checkpoint_stall [--megabytes 100] [--steps 50] [--rounds 5] [--device cpu] [--directory DIR]

Each measurement is one save followed by `steps` training steps, so that what our processes do beside the loop is part
of it. `stall` is the time inside save() per time of such a block, `slower` the whole block against one without a save.
The state is weights and AdamW's two moments in fp32. The first save of ours, which gets its memory, is reported apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from training.checkpoints import Checkpoints

LAYERS, ROWS = 4, 64


def build(megabytes: int, device: torch.device) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A stack of square layers whose weights and moments take about `megabytes`."""
    width = round((megabytes * 1e6 / 12 / LAYERS) ** 0.5)
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(LAYERS))).to(device)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


class Loop:
    """Training steps on random rows, and the savers to compare."""

    def __init__(self, megabytes: int, device: torch.device, directory: Path):
        self.model, self.optimizer = build(megabytes, device)
        self.rows = torch.randn(ROWS, self.model[0].in_features, device=device)
        self.state = {"model": self.model, "optimizer": self.optimizer}
        self.directory, self.step = directory, 0
        self.checkpoints = Checkpoints(directory / "ours")

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.model(self.rows).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
        if self.rows.is_cuda:
            torch.cuda.synchronize()

    def none(self) -> None:
        pass

    def ours(self) -> None:
        assert self.checkpoints.save(self.step, self.state)

    def torch_save(self) -> None:
        """What a plain script does, made safe: forced to disk under another name, then renamed."""
        temporary = self.directory / "plain.tmp"
        with temporary.open("wb") as stream:
            torch.save({name: each.state_dict() for name, each in self.state.items()}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(self.directory / "plain.pt")

    def measure(self, save: Callable[[], None], steps: int) -> dict[str, float]:
        """Seconds of one save and of the block that it begins, and this process's CPU seconds."""
        began, cpu = time.perf_counter(), time.process_time()
        save()
        saved = time.perf_counter()
        self.train(steps)
        block = time.perf_counter() - began
        self.checkpoints._written()  # its rest counts against no other block
        return {"save": saved - began, "block": block, "cpu": time.process_time() - cpu}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint_stall", description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100, help="size of a checkpoint")
    parser.add_argument("--steps", type=int, default=50, help="steps per save")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--directory", type=Path, help="on the disk to measure; default: the system's temporary one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        loop = Loop(options.megabytes, options.device, Path(directory))
        loop.train(5)
        savers = {"none": loop.none, "ours": loop.ours, "torch.save": loop.torch_save}
        first = loop.measure(loop.ours, 1)["save"]
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in savers}
        for _ in range(options.rounds):
            for name, save in savers.items():
                figures[name].append(loop.measure(save, options.steps))
        loop.checkpoints.close()
    medians = {
        name: {key: statistics.median(one[key] for one in ones) for key in ones[0]} for name, ones in figures.items()
    }
    print(
        f"{options.megabytes} MB, a save per {options.steps} steps, {options.rounds} rounds; first save {first:.3f} s"
    )
    print("| saver | save (s) | block (s) | CPU (s) | stall | slower |\n|---|---|---|---|---|---|")
    for name, one in medians.items():
        stall, slower = one["save"] / one["block"], one["block"] / medians["none"]["block"] - 1
        print(f"| {name} | {one['save']:.4f} | {one['block']:.3f} | {one['cpu']:.3f} | {stall:.2%} | {slower:+.2%} |")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
