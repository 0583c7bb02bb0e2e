"""What the user hears when a model cannot be used."""

from __future__ import annotations

from pathlib import Path

from training.errors import UserError

# What libraries say in many lines, and what it means; the first phrase that is found counts.
MEANINGS = {
    "gated repo": "it is gated: accept its terms on the hub and set HF_TOKEN in the environment",
    "couldn't connect": "it is not in the cache and the hub cannot be reached",
    "custom code": "it needs program code of its own, which is never run here",
    "backend tokenizer": "there is no tokenizer in it",
    "Unrecognized configuration class": "it is not a causal language model",
    "ignore_mismatched_sizes": "its weights do not have the shapes that its config.json tells",
}


class ModelError(UserError):
    """A model, tokenizer or adapter that cannot be used; one line with the key and the fix."""


def first_line(error: Exception) -> str:
    """The first line of what a library has to say, short enough to stand inside one line of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")[:200]


def cannot_load(key: str, name: str, other: str, error: Exception) -> ModelError:
    """The ModelError for what a library said when it could not read `name`; `other` may be written instead."""
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path and not Path(name).is_dir():
        reason = "no such directory"
    else:
        known = (meaning for phrase, meaning in MEANINGS.items() if phrase in str(error))
        reason = next(known, first_line(error))
    return ModelError(f"{key}: {name} cannot be loaded ({reason}); write a Hugging Face directory, a hub id or {other}")
