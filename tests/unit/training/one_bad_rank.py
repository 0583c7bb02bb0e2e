"""Entry point for tests: a finetune in which rank 1 goes wrong at step 3, in the way that FAULT says."""

from __future__ import annotations

import os

import torch

from training import finetune, lifecycle
from training.models import SummedLoss

healthy = SummedLoss.forward


def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
    loss = healthy(self, *inputs)
    forward.training_calls += self.training
    # 2 throw-away passes, then 4 micro-batches per step on each of 2 ranks.
    if os.environ["RANK"] == "1" and forward.training_calls > 2 + 2 * 4:
        if os.environ["FAULT"] == "raise":
            raise KeyError("no such column")
        return loss * float("nan")
    return loss


forward.training_calls = 0
SummedLoss.forward = forward

if __name__ == "__main__":
    lifecycle.leave(finetune.main())
