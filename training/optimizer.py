"""AdamW and its learning rate."""

from __future__ import annotations

import math

import torch

from training.config import Config


def build_optimizer(config: Config, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
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
