"""What a finished run leaves: the model with its card and a sample of what it writes."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from training import models
from training.config import Config
from training.data import Packed
from training.files import write_atomically
from training.progress import Progress


def leave_results(
    config: Config, progress: Progress, nodes: tuple[str, ...], model: nn.Module, tokenizer, heldout: Packed, job: Path
) -> str:
    """Export `model` to job/model, print the run's figures and return the text that it generates."""
    card = {
        "job": job.name,
        "base model": config.model,
        "tuning": config.tuning,
        "data": config.data_train,
        "steps": progress.step,
        "rows seen": progress.samples,
        "global batch (rows)": config.global_batch,
        "sequence length (tokens)": config.seq_len,
        "learning rate": config.lr,
        "precision": config.precision,
        "seed": config.seed,
        "held-out loss before (nats/token)": f"{progress.heldout_first:.4f}",
        "held-out loss after (nats/token)": f"{progress.heldout_last:.4f}",
        "training time (s)": round(progress.train_seconds, 1),
        "nodes": ", ".join(dict.fromkeys(nodes)),
    }
    # The name in the config: a copy that was fetched for the cluster is found nowhere else.
    models.export(model, tokenizer, job / "model", card, "" if config.model == "scratch" else config.model)
    length = config.sample_tokens
    try:
        sample = models.generate(model, tokenizer, heldout.prompt(0), length) if length else ""
        write_atomically(job / "sample.txt", sample + "\n")
    except (RuntimeError, OSError) as error:  # out of memory, say: the model is trained and exported all the same
        sample = f"(none: {error})"
    mean = progress.train_seconds / progress.step
    print(f"total {progress.train_seconds:.1f} s in {progress.step} steps, mean step {mean:.4f} s")
    print(f"held-out loss {progress.heldout_first:.4f} -> {progress.heldout_last:.4f}")
    print(f"sample:\n{sample}", flush=True)
    return sample
