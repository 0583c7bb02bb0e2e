"""One micro-batch as tensors: its documents one behind the other in a single row, without any padding."""

from __future__ import annotations

import dataclasses

import torch

IGNORED = -100  # label of a place whose next token does not count in the loss


@dataclasses.dataclass(kw_only=True, frozen=True)
class Batch:
    """The documents of one micro-batch in one row of T tokens.

    tokens     int64 (1, T)
    labels     int64 (1, T): the token that follows in the same document, IGNORED where that does not count
    positions  int64 (1, T): counted from 0 in each document
    bounds     int32 (documents + 1): document d is tokens[0, bounds[d]:bounds[d + 1]]
    longest    tokens of the longest document
    places     int64 (counted): where the labels that count are; known here, so that a GPU need not be asked
    counted    labels that count
    seen       tokens
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    bounds: torch.Tensor
    longest: int
    places: torch.Tensor
    counted: int
    seen: int

    def inputs(self, device: torch.device) -> tuple[torch.Tensor | int, ...]:
        """What `SummedLoss.forward` takes, on `device`."""
        tensors = (self.tokens, self.labels, self.positions, self.bounds)
        moved = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return *moved, self.longest, self.places.to(device, non_blocking=True)
