"""One measurement of our own loop: `training.finetune` from its command line on, with a clock behind each step.

    python -m benchmarks.ours --output FILE --warm-up 2 --config FILE [--job-dir DIR] [key=value ...]

What comes after --warm-up is the command line of `training.finetune`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

from benchmarks.clock import Clock
from training import finetune


def measured(clock: Clock, losses: list[torch.Tensor]):
    """finetune's `train_step`, followed by a mark of `clock`; the mean loss of each step goes to `losses`."""
    step = finetune.train_step

    def train_step(run: finetune.Run) -> tuple[bool, bool]:
        asked = step(run)
        done = run.unsettled[-1]
        clock.saw(done.seen)
        clock.step_done()
        losses.append(done.losses.sum() / done.counted)
        return asked

    return train_step


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ours", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--steps", type=int, default=14)
    options, sys.argv[1:] = parser.parse_known_args()
    clock, losses = Clock(warm_up=options.warm_up, steps=options.steps), []
    finetune.train_step = measured(clock, losses)
    finetune.main()
    mean_loss = statistics.fmean(float(loss) for loss in losses)
    options.output.write_text(json.dumps(clock.figures() | {"loss": mean_loss}), encoding="utf-8")


if __name__ == "__main__":
    main()
