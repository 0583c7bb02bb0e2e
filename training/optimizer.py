"""AdamW and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from training.config import Config


def build_optimizer(config: Config, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.AdamW:
    """AdamW over `parameters`; weight decay on matrices only.

    Fused: one kernel for all, and a step with `found_inf` (a float32 scalar on the device) above 0 changes nothing.
    """
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def learning_rate(config: Config, step: int, steps: int) -> float:
    """The rate of `step` (from 1) of `steps`: straight up during the warm-up, then a cosine down."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    lowest = config.lr * config.min_lr_fraction
    return lowest + (config.lr - lowest) * (1 + math.cos(math.pi * done)) / 2
