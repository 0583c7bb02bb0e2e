"""What every candidate of a comparison trains: the same weights, the same documents."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from training import config as configuration
from training import data, models
from training.config import Config

TOKENIZER = "bytes"


@dataclasses.dataclass(kw_only=True, frozen=True)
class Shape:
    """The sizes of a Llama."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    tied: bool = True

    def parameters(self) -> int:
        """How many weights take part in a matrix product for every token; the embedding table does only as head."""
        width = self.hidden // self.heads
        attention = 2 * self.hidden * width * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp) + self.hidden * self.vocabulary


TINY = Shape(vocabulary=259, hidden=128, layers=4, heads=4, kv_heads=4, mlp=384)  # the default `scratch` model


def make_model(shape: Shape, places: int, directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A Hugging Face directory with random weights (seed 1) of this shape, for rows of up to `places` tokens."""
    torch.manual_seed(1)
    settings = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=places,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        dtype=dtype,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(settings).to(dtype)
    model.save_pretrained(directory)
    if torch.cuda.is_available():
        del model
        torch.cuda.empty_cache()  # this process lives on while the candidates need the card
    return directory


def make_pairs(source: Path, count: int, directory: Path) -> Path:
    """A .jsonl file with the first `count` instruction pairs of `source`; as often again as it takes."""
    lines = read_pairs(source)
    file = directory / "pairs.jsonl"
    file.write_text("\n".join(itertools.islice(itertools.cycle(lines), count)) + "\n", encoding="utf-8")
    return file


def make_text(source: Path, length: int, directory: Path) -> Path:
    """A .txt file of about `length` bytes: the pairs of `source` as plain text, as often again as it takes."""
    pairs = [json.loads(line) for line in read_pairs(source)]
    text = "".join(f"{pair['instruction']}\n{pair['response']}\n\n" for pair in pairs).encode()
    file = directory / "text.txt"
    file.write_text((text * (length // len(text) + 1))[:length].decode(errors="ignore"), encoding="utf-8")
    return file


def read_pairs(source: Path) -> list[str]:
    """The lines of the demo's training file. Errors: SystemExit with the command that makes it."""
    try:
        return source.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        fix = "make it with `.venv/bin/python -m training.demo_data --output build/demo-data`"
        raise SystemExit(f"{source}: no such file; {fix}, or give another .jsonl by --pairs") from None


def write_config(file: Path, **settings: object) -> Config:
    """A config file for our own loop in which nothing happens beside training."""
    quiet = {"log_every": 10**6, "save_every": 10**6, "heldout_rows": 1, "sample_tokens": 0}
    file.write_text(yaml.safe_dump(settings | quiet), encoding="utf-8")
    return configuration.load(file)


def write_documents(config: Config, directory: Path) -> Path:
    """The documents that our loop trains on, one JSON line each (`input_ids`, `labels`), for the peers."""
    alone = dataclasses.replace(config, packing=False)
    rows = data.obtain(alone, models.load_tokenizer(alone), prepared=None, local_dir=directory / "alone").train
    file = directory / "documents.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for row in range(len(rows)):
            batch = rows.batch([row])
            labels = [data.IGNORED, *batch.labels[0, :-1].tolist()]  # ours stand one place ahead
            stream.write(json.dumps({"input_ids": batch.tokens[0].tolist(), "labels": labels}) + "\n")
    return file
