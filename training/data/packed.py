"""Packed rows as the training loop reads them: memory-mapped, a micro-batch in some tens of microseconds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from training.data.batch import IGNORED, Batch
from training.data.rows import DataError

MANIFEST = "manifest.json"
SIDES = ("train", "heldout")


def files_of(side: str) -> list[str]:
    """The files of one side, all little-endian.

    tokens     uint16 or uint32, all documents one behind the other, in the order of the rows
    counts     uint8 per token: 1 where it counts in the loss
    documents  int64: document d is tokens[documents[d]:documents[d + 1]]
    rows       int64: row r holds the documents rows[r] to rows[r + 1] (excluded)
    labels     int64 per row: how many of its tokens count
    """
    return [f"{side}.{name}" for name in ("tokens", "counts", "documents", "rows", "labels")]


class Packed:
    """One set of rows, each of one or more documents; nothing is read before it is asked for."""

    def __init__(self, directory: Path, side: str, token_type: str, first: int = 0):
        """The rows of `side` in `directory`, only the `first` ones unless that is 0."""
        types = (token_type, "u1", "<i8", "<i8", "<i8")
        # A plain view: slices of a memmap object carry its bookkeeping along and are five times slower.
        self._tokens, self._counts, self._documents, self._rows, self._labels = (
            np.memmap(directory / name, dtype=dtype, mode="r").view(np.ndarray)
            for name, dtype in zip(files_of(side), types, strict=True)
        )
        self._count = min(first or len(self._labels), len(self._labels))
        self._begins = self._documents[self._rows]
        self.lengths = np.diff(self._begins[: self._count + 1])  # tokens of each row, int64 (rows)

    def __len__(self) -> int:
        return self._count

    def counted(self, indices: Sequence[int]) -> int:
        """How many labels of these rows count in the loss; reads no tokens."""
        return int(self._labels[self._checked(indices)].sum())

    def highest(self) -> int:
        """The highest token of all; reads them all, once."""
        return int(self._tokens.max()) if len(self._tokens) else 0

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows `indices` as one micro-batch. No rows at all give one token that counts nothing: a rank without
        work still takes part in the all-reduce with it.
        """
        if len(indices) == 0:
            return self._assembled(np.zeros(1, np.int64), np.zeros(1, np.uint8), np.ones(1, np.int64))
        rows = self._checked(indices)
        tokens, counts, lengths = [], [], []
        places = (self._begins[rows], self._begins[rows + 1], self._rows[rows], self._rows[rows + 1])
        for first, last, document, end in zip(*(place.tolist() for place in places), strict=True):
            tokens.append(self._tokens[first:last])
            counts.append(self._counts[first:last])
            lengths.append(np.diff(self._documents[document : end + 1]))
        return self._assembled(np.concatenate(tokens), np.concatenate(counts), np.concatenate(lengths))

    def prompt(self, row: int) -> list[int]:
        """What to continue when a sample is wanted, of the row's first document: the question; of text the first
        quarter.
        """
        document = int(self._rows[self._checked([row])[0]])
        first, last = self._documents[document : document + 2].tolist()
        answer = int(np.argmax(self._counts[first:last]))
        length = answer if answer > 1 else max(1, (last - first) // 4)
        return self._tokens[first : first + length].tolist()

    def _checked(self, indices: Sequence[int]) -> np.ndarray:
        rows = np.asarray(indices, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self._count):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {self._count}")
        return rows

    @staticmethod
    def _assembled(tokens: np.ndarray, counts: np.ndarray, lengths: np.ndarray) -> Batch:
        """`lengths` of the documents that lie one behind the other in `tokens`."""
        bounds = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=bounds[1:])
        tokens = tokens.astype(np.int64)
        labels = np.full_like(tokens, IGNORED)
        # The first token of a document never counts, so no label crosses from one document to the next.
        np.copyto(labels[:-1], tokens[1:], where=counts[1:].view(bool))
        positions = np.arange(len(tokens)) - np.repeat(bounds[:-1].astype(np.int64), lengths)
        return Batch(
            tokens=torch.from_numpy(tokens)[None],
            labels=torch.from_numpy(labels)[None],
            positions=torch.from_numpy(positions)[None],
            bounds=torch.from_numpy(bounds),
            longest=int(lengths.max()),
            places=torch.from_numpy(np.flatnonzero(labels != IGNORED)),
            counted=int(counts.sum()),
            seen=len(tokens),
        )


@dataclasses.dataclass(kw_only=True, frozen=True)
class Corpus:
    """Training rows, held-out rows (always one document each) and the hex fingerprint of what they were made from."""

    train: Packed
    heldout: Packed
    fingerprint: str

    def highest(self) -> int:
        """The highest token that occurs."""
        return max(self.train.highest(), self.heldout.highest())


def read_manifest(directory: Path) -> dict[str, object]:
    """The manifest of a packed directory. Errors: DataError where there is none that can be read."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        missing = {"fingerprint", "format", "settings", "tokenizer", "token_type", "sources", "sha256", *SIDES} - set(
            manifest
        )
    except FileNotFoundError:
        raise DataError(f"{path}: is missing; run `python -m training.prepare` again") from None
    except (OSError, ValueError, TypeError) as error:
        problem = f"cannot be read ({type(error).__name__})"
        raise DataError(f"{path}: {problem}; run `python -m training.prepare` again") from None
    if missing:
        fix = "run `python -m training.prepare` again"
        raise DataError(f"{path}: does not name {', '.join(sorted(missing))}; {fix}")
    return manifest


def open_corpus(directory: Path, heldout_rows: int) -> Corpus:
    """Both sides of a packed directory whose hashes were checked; `heldout_rows` as in the config."""
    manifest = read_manifest(directory)
    train, heldout = (
        Packed(directory, side, manifest["token_type"], first)
        for side, first in zip(SIDES, (0, heldout_rows), strict=True)
    )
    return Corpus(train=train, heldout=heldout, fingerprint=manifest["fingerprint"])
