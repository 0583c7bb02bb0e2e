"""How far a run is, and what of its last steps is still on the device."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from training.checkpoints import CheckpointError


@dataclasses.dataclass(kw_only=True)
class Progress:
    """How far the run is; rank 0 puts its own into each checkpoint, all ranks go on from it."""

    step: int = 0
    samples: int = 0
    ledger_total: int = 0
    epoch_loss: float = 0.0
    epoch_tokens: float = 0.0
    train_seconds: float = 0.0
    heldout_first: float | None = None
    heldout_last: float | None = None
    fingerprint: dict[str, object] = dataclasses.field(default_factory=dict)

    def require_same_run(self, before: Progress, checkpoints: Path) -> None:
        """Errors: CheckpointError when the run that has come as far as `before` had other settings or data."""
        for key, value in self.fingerprint.items():
            if before.fingerprint.get(key) != value:
                raise CheckpointError(
                    f"{checkpoints}: was made with {key} {before.fingerprint.get(key)!r}, now it is {value!r}; "
                    "put it back or use another job directory"
                )


@dataclasses.dataclass(kw_only=True, frozen=True)
class StepResult:
    """One step as a rank has it. `losses` (float32, one per micro-batch of this rank) and `norm` (float32, of
    the whole gradient before clipping) are still on the device: looking at them waits for it.
    """

    step: int
    first: int
    last: int
    losses: torch.Tensor
    norm: torch.Tensor
    counted: int
    seen: int
    lr: float
    seconds: float

    def figures(self) -> torch.Tensor:
        """(loss sum, first micro-batch of this rank whose loss is not finite or -1, norm, seconds), float64, CPU.

        Waits for the device.
        """
        losses = self.losses.double().cpu()
        bad = (~torch.isfinite(losses)).nonzero()
        index = float(bad[0]) if len(bad) else -1.0
        return torch.tensor([float(losses.sum()), index, float(self.norm), self.seconds], dtype=torch.float64)
