"""Rows of tokens, and which rows belong to which step.

Two kinds of file: .jsonl with one instruction/response pair per line (only the answer counts in the loss) and
.txt with plain text (every token counts). The order is a pure function of (seed, number of samples consumed
so far): nothing about the sampler has to be saved, and any number of ranks sees the same samples in the same
order.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import torch

from training.config import Config
from training.files import sha256_of

IGNORED = -100  # label of tokens that do not count in the loss: prompt and padding
HELDOUT_SHARE = 10  # without a held-out file every tenth row (pairs) or the last tenth (text) is kept aside


class DataError(ValueError):
    """Data that cannot be used; the message is one line with file, line and the fix."""


@dataclasses.dataclass(kw_only=True, frozen=True)
class Row:
    """One sample: `tokens`, and from `answer_start` on they count in the loss."""

    tokens: list[int]
    answer_start: int

    def prompt(self) -> list[int]:
        """What to continue when a sample is wanted: the question, of plain text the first quarter."""
        return self.tokens[: self.answer_start if self.answer_start > 1 else max(1, len(self.tokens) // 4)]


@dataclasses.dataclass(kw_only=True, frozen=True)
class Corpus:
    """Training and held-out rows with the hash of the files that they came from."""

    train: list[Row]
    heldout: list[Row]
    sha256: str


def load(config: Config, tokenizer) -> Corpus:
    """Read and tokenise the files of `config`. Called before any process group exists, so slow files cost no
    timeout.

    Errors: DataError (missing or empty file, bad line, nothing left to train on or to hold out).
    """
    train = _rows_of(Path(config.data_train), config, tokenizer)
    files = [Path(config.data_train)]
    if config.data_heldout:
        heldout = _rows_of(Path(config.data_heldout), config, tokenizer)
        files.append(Path(config.data_heldout))
    else:
        train, heldout = _keep_some_aside(train, config.data_train)
    if not heldout:
        raise DataError(f"{config.data_heldout or config.data_train}: no row to hold out; give more data")
    if config.heldout_rows:
        heldout = heldout[: config.heldout_rows]
    digest = hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()
    return Corpus(train=train, heldout=heldout, sha256=digest)


def _rows_of(file: Path, config: Config, tokenizer) -> list[Row]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{file}: no such file (from {Path.cwd()}); correct data_train or data_heldout") from None
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{file}: line {line} is not UTF-8; convert the file, for example with iconv") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); correct its path or its rights") from None
    rows = _text_rows(text, config, tokenizer) if file.suffix == ".txt" else _pair_rows(file, text, config, tokenizer)
    if not rows:
        raise DataError(
            f"{file}: no usable row; it is empty or seq_len ({config.seq_len}) leaves no room for an answer"
        )
    return rows


def _text_rows(text: str, config: Config, tokenizer) -> list[Row]:
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    blocks = [tokens[start : start + config.seq_len] for start in range(0, len(tokens), config.seq_len)]
    # A block of one token has nothing to predict; the first token of a block has no predecessor.
    return [Row(tokens=block, answer_start=1) for block in blocks if len(block) > 1]


def _pair_rows(file: Path, text: str, config: Config, tokenizer) -> list[Row]:
    rows, without_answer = [], 0
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        instruction, response = _parse_pair(file, number, line, config)
        prompt = config.prompt_template.replace("{instruction}", instruction)
        before = start + tokenizer(prompt, add_special_tokens=False).input_ids
        answer = [*tokenizer(response, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        tokens = (before + answer)[: config.seq_len]
        if len(tokens) > len(before) > 0:
            rows.append(Row(tokens=tokens, answer_start=len(before)))
        else:
            without_answer += 1
    if without_answer:
        print(
            f"{file}: {without_answer} rows left out: their prompt alone fills seq_len ({config.seq_len})",
            flush=True,
        )
    return rows


def _parse_pair(file: Path, number: int, line: str, config: Config) -> tuple[str, str]:
    wanted = (config.instruction_field, config.response_field)
    shape = "{" + ", ".join(f'"{key}": "..."' for key in wanted) + "}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: line {number} is not valid JSON ({error.msg}); write {shape}") from None
    for key in wanted:
        value = row.get(key) if isinstance(row, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{file}: line {number} has no text in {key!r}; write {shape} or set *_field in the config")
    return row[wanted[0]], row[wanted[1]]


def _keep_some_aside(rows: list[Row], file: str) -> tuple[list[Row], list[Row]]:
    if file.endswith(".txt"):
        cut = len(rows) - max(1, len(rows) // HELDOUT_SHARE)
        return rows[:cut], rows[cut:]
    # By content, so that a pair that is there twice cannot be on both sides.
    aside = [int(hashlib.sha256(repr(row.tokens).encode()).hexdigest(), 16) % HELDOUT_SHARE == 0 for row in rows]
    return (
        [row for row, out in zip(rows, aside, strict=True) if not out],
        [row for row, out in zip(rows, aside, strict=True) if out],
    )


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


def collate(rows: list[Row], pad: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(tokens, labels, valid): two int64 tensors of shape (rows, longest row) and the number of labels that
    count.

    Rows are padded on the right; a causal model never looks there, so no attention mask is needed. Labels
    stand at their token's own place (the loss shifts them). No rows at all give one padding token that counts
    nothing: a rank without work still takes part in the all-reduce with it.
    """
    longest = max((len(row.tokens) for row in rows), default=2)
    tokens = torch.full((max(1, len(rows)), longest), pad)
    labels = torch.full_like(tokens, IGNORED)
    for place, row in enumerate(rows):
        tokens[place, : len(row.tokens)] = torch.tensor(row.tokens)
        labels[place, row.answer_start : len(row.tokens)] = torch.tensor(row.tokens[row.answer_start :])
    return tokens, labels, int((labels[:, 1:] != IGNORED).sum())


def key_of(*parts: object) -> int:
    """A 63-bit seed from any parts; neighbouring parts give unrelated seeds, on every machine the same."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
