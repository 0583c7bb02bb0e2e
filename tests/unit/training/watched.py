"""Entry point for tests: a finetune that writes down what it really did, into the directory WATCH.

rows-<start>-<rank>.jsonl    per step: {"step", "rows"}, the rows that this rank put through the model in training
gradients-1.pt               rank 0's gradient in step 1, before clipping
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from training import finetune, lifecycle
from training.data import Packed

WATCH = Path(os.environ["WATCH"])
RANK = os.environ.get("RANK", "0")
START = os.environ.get("START", "0")
counting = {"on": False, "rows": []}
healthy_step, healthy_batch, healthy_clip = finetune.train_step, Packed.batch, torch.nn.utils.clip_grad_norm_


def batch(self, rows):
    if counting["on"]:
        counting["rows"] += [int(row) for row in rows]
    return healthy_batch(self, rows)


def train_step(run):
    counting.update(on=True, rows=[])
    outcome = healthy_step(run)
    counting["on"] = False
    with (WATCH / f"rows-{START}-{RANK}.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": run.progress.step, "rows": counting["rows"]}) + "\n")
    return outcome


def clip(parameters, limit):
    file = WATCH / "gradients-1.pt"
    if RANK == "0" and not file.exists():
        torch.save([parameter.grad for parameter in parameters], file)
    return healthy_clip(parameters, limit)


Packed.batch = batch
finetune.train_step = train_step
torch.nn.utils.clip_grad_norm_ = clip

if __name__ == "__main__":
    lifecycle.leave(finetune.main())
