"""The model: loading it, its loss, adapters, a sample of what it writes, and export."""

from training.models.adapters import Trained
from training.models.errors import ModelError
from training.models.export import export
from training.models.identity import architecture_of, identity_of
from training.models.load import load_model, load_tokenizer, padding_token
from training.models.loss import SummedLoss
from training.models.sample import generate

__all__ = [
    "ModelError",
    "SummedLoss",
    "Trained",
    "architecture_of",
    "export",
    "generate",
    "identity_of",
    "load_model",
    "load_tokenizer",
    "padding_token",
]
