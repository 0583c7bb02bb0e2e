"""What the ranks of a run tell each other while they restore; alone, without a process group, each call is trivial."""

from __future__ import annotations

import torch
import torch.distributed as dist

PIECE = 64 << 20  # bytes of the device's memory that a broadcast takes


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gather(value: object) -> list:
    """Every rank's value, in their order."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def tell(value: object, source: int) -> object:
    """The value of rank `source` on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def tell_bytes(content: torch.Tensor, source: int) -> None:
    """Fill `content` (uint8, in the host's memory, as long everywhere) with that of rank `source`, in pieces."""
    if not dist.is_initialized():
        return
    gloo = "gloo" in str(dist.get_backend_config())
    device = torch.device("cpu") if gloo else torch.device("cuda", torch.cuda.current_device())
    for piece in content.split(PIECE):
        shared = piece.to(device)
        dist.broadcast(shared, src=source)
        if shared is not piece and rank() != source:
            piece.copy_(shared)
