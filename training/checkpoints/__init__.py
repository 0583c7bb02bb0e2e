"""Checkpoints of a training run, for our own program and for any script of yours: see README.md here."""

from training.checkpoints.api import CheckpointError, Checkpoints, Restored
from training.storage import Share

__all__ = ["CheckpointError", "Checkpoints", "Restored", "Share"]
