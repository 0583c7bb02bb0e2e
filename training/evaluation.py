"""The held-out loss, each rank with its part of the documents."""

from __future__ import annotations

import torch
from torch import nn

from training import distributed
from training.config import Config
from training.data import Packed
from training.distributed import Place

TOGETHER = 32
"""Batches of each rank after which all wait for the slowest: at the end alone a slow card would be taken for a lost
one where there is much to evaluate."""


@torch.no_grad()
def heldout_loss(model: nn.Module, heldout: Packed, config: Config, place: Place) -> float:
    """Mean loss over all held-out labels that count, in nats; `model` gives sums (models.SummedLoss).

    Equal on all ranks; the model is back in train mode afterwards.
    """
    batches = _grouped(heldout.lengths.tolist(), config.micro_batch * config.seq_len)
    loss = torch.zeros((), dtype=torch.float64, device=place.device)
    model.eval()
    for first in range(0, len(batches), place.world_size):
        if first + place.rank < len(batches):
            loss += model(*heldout.batch(batches[first + place.rank]).inputs(place.device))
        if (first // place.world_size + 1) % TOGETHER == 0:
            loss.cpu()  # wait for the device: what it has been given is not done yet
            distributed.agree(place, 0)
    model.train()
    total = distributed.sum_over_ranks(place, loss.reshape(1).cpu())[0]
    return total / max(1, heldout.counted(range(len(heldout))))


def _grouped(lengths: list[int], tokens: int) -> list[list[int]]:
    """Documents in groups of at most `tokens` tokens (a longer one alone): they are flat, so none is padded."""
    groups, room = [], 0
    for document, length in enumerate(lengths):
        if length > room or not groups:
            groups.append([])
            room = tokens
        groups[-1].append(document)
        room -= length
    return groups
