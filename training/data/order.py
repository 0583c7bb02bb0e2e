"""Which rows belong to which step: a pure function of (seed, number of samples consumed so far).

Nothing about a sampler has to be saved, and any number of ranks sees the same rows in the same order.
"""

from __future__ import annotations

import functools
import hashlib

import torch


@functools.lru_cache(maxsize=2)
def _epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(key_of(seed, "order", epoch))
    return torch.randperm(rows, generator=generator).tolist()


def sample_indices(rows: int, seed: int, first: int, last: int) -> list[int]:
    """Row numbers of the samples `first` to `last` (excluded), counted over all epochs.

    Sample k is entry k % rows of the shuffle of epoch k // rows: every row comes exactly once per epoch, and
    a batch that crosses the end of an epoch goes on in the next shuffle.
    """
    return [_epoch_order(rows, seed, k // rows)[k % rows] for k in range(first, last)]


def micro_batches_of(rank: int, world_size: int, count: int) -> range:
    """Which of the step's `count` micro-batches this rank takes: a contiguous share, 8 over 3 ranks is 3 + 3
    + 2.

    Empty for the last ranks when there are more ranks than micro-batches.
    """
    share, extra = divmod(count, world_size)
    start = rank * share + min(rank, extra)
    return range(start, start + share + (rank < extra))


def key_of(*parts: object) -> int:
    """A 63-bit seed from any parts; neighbouring parts give unrelated seeds, on every machine the same."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
