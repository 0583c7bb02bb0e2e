"""Documents -> packed files: spooled to disk as they are tokenised, then written again in the order of the rows.

A packed directory holds for each side (train, heldout) the files that `packed.Packed` reads, and a manifest with their
hashes. It is written under a temporary name and renamed when everything is on the disk.
"""

from __future__ import annotations

import array
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from training.config import Config
from training.data.formats import Tally, documents
from training.data.packed import MANIFEST, SIDES, files_of
from training.data.packing import first_fit_decreasing, one_per_row
from training.data.rows import DataError
from training.data.segments import Document
from training.data.sources import Source
from training.files import fsync_directory, fsync_file, sha256_of

HELDOUT_SHARE = 10  # without held-out data about every tenth row is kept aside, of running text the last tenth
AT_ONCE = 1 << 20  # tokens that are moved at a time
BUFFER = 1 << 20  # bytes
SAY_EVERY = 15  # seconds


class Spool:
    """Documents in the order in which they come; their tokens on disk, their lengths in memory (8 bytes each)."""

    def __init__(self, directory: Path, vocabulary: int):
        self.dtype = np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
        self.paths = (directory / "spool.tokens", directory / "spool.counts")
        self.streams = [path.open("wb", buffering=BUFFER) for path in self.paths]
        self.say_at = time.monotonic() + SAY_EVERY
        self.lengths, self.counted, self.aside = array.array("q"), array.array("q"), array.array("b")

    def add(self, made: Iterable[Document], aside: bool) -> None:
        """Append documents; `aside` is whether they are held out."""
        for document in made:
            counts = np.zeros(len(document.tokens), dtype=np.uint8)
            for first, last in document.counts:
                counts[first:last] = 1
            self.streams[0].write(np.array(document.tokens, dtype=self.dtype).tobytes())
            self.streams[1].write(counts.tobytes())
            self.lengths.append(len(counts))
            self.counted.append(int(counts.sum()))
            self.aside.append(aside)
        if time.monotonic() > self.say_at:
            print(f"packing: {len(self.lengths):,} documents so far", flush=True)
            self.say_at = time.monotonic() + SAY_EVERY

    def close(self) -> None:
        """No more documents come; `tokens` and `counts` are there to read."""
        for stream in self.streams:
            stream.close()
        if self.lengths:
            self.tokens = np.memmap(self.paths[0], dtype=self.dtype, mode="r")
            self.counts = np.memmap(self.paths[1], dtype=np.uint8, mode="r")

    def delete(self) -> None:
        for path in self.paths:
            path.unlink()


def write(
    sources: tuple[Source, Source | None], config: Config, tokenizer, directory: Path, identity: dict[str, object]
) -> None:
    """Fill `directory`, which is empty, with packed data of `sources` and a manifest that begins with `identity`.

    Errors: DataError (bad data, nothing to train on or to hold out), OSError (disk full).
    """
    train, heldout = sources
    spool = Spool(directory, max(tokenizer.get_vocab().values()) + 1)
    tallies = [Tally(source.name) for source in sources if source]
    for made in documents(train, config, tokenizer, tallies[0]):
        spool.add(made, aside=heldout is None and train.kind != ".txt" and _belongs_aside(made))
    if heldout:
        for made in documents(heldout, config, tokenizer, tallies[1]):
            spool.add(made, aside=True)
    for tally in tallies:
        tally.close(config.bad_rows, config.seq_len)
    spool.close()
    aside = np.array(spool.aside, dtype=bool)
    if not heldout and train.kind == ".txt" and len(aside):
        aside[-max(1, len(aside) // HELDOUT_SHARE) :] = True
    _require_both(sources, aside, config.seq_len)
    facts = {}
    for side, chosen in zip(SIDES, (np.flatnonzero(~aside), np.flatnonzero(aside)), strict=True):
        pack = config.packing and side == "train"
        facts[side] = _write_side(directory, side, spool, chosen, config.seq_len if pack else None)
        facts[side]["fill"] = facts[side]["tokens"] / (facts[side]["rows"] * config.seq_len)
    spool.delete()
    names = [name for side in SIDES for name in files_of(side)]
    for name in names:
        fsync_file(directory / name)
    hashes = {name: sha256_of(directory / name) for name in names}
    kinds = {"token_type": spool.dtype.str, "sources": [tally.facts() for tally in tallies]}
    manifest = identity | kinds | facts | {"sha256": hashes}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    fsync_file(directory / MANIFEST)
    fsync_directory(directory)


def _belongs_aside(made: list[Document]) -> bool:
    """By content, so that a row that is there twice cannot be on both sides."""
    if not made:
        return False
    content = np.array(made[0].tokens, dtype="<u4").tobytes()
    return int(hashlib.sha256(content).hexdigest(), 16) % HELDOUT_SHARE == 0


def _require_both(sources: tuple[Source, Source | None], aside: np.ndarray, seq_len: int) -> None:
    train, heldout = sources
    unusable = f"no usable row; it is empty or seq_len ({seq_len}) leaves no room for an answer"
    if heldout and not aside.any():
        raise DataError(f"{heldout.name}: {unusable}")
    if not len(aside) or (heldout and aside.all()):
        raise DataError(f"{train.name}: {unusable}")
    if not aside.any():
        raise DataError(f"{train.name}: no row to hold out among {len(aside)}; give more data or set data_heldout")
    if aside.all():
        raise DataError(f"{train.name}: all {len(aside)} rows are held out; give more data or set data_heldout")


def _write_side(directory: Path, side: str, spool: Spool, chosen: np.ndarray, capacity: int | None) -> dict[str, int]:
    """Write the documents `chosen` in rows of up to `capacity` tokens (None: one per row); returns their facts."""
    lengths = np.array(spool.lengths, dtype=np.int64)
    if capacity is None:
        places, rows = one_per_row(len(chosen))
    else:
        places, rows = first_fit_decreasing(lengths[chosen], capacity)
    documents = chosen[places]
    first_of = np.concatenate([[0], np.cumsum(lengths)])
    bounds = np.concatenate([[0], np.cumsum(lengths[documents])])
    counted = np.array(spool.counted, dtype=np.int64)[documents]
    paths = [directory / name for name in files_of(side)]
    with paths[0].open("wb") as tokens, paths[1].open("wb") as counts:
        at = 0
        while at < len(documents):
            end = max(at + 1, int(np.searchsorted(bounds, bounds[at] + AT_ONCE, side="right")) - 1)
            group, length = documents[at:end], int(bounds[end] - bounds[at])
            within = np.repeat(first_of[group] - (bounds[at:end] - bounds[at]), lengths[group]) + np.arange(length)
            tokens.write(spool.tokens[within].tobytes())
            counts.write(spool.counts[within].tobytes())
            at = end
    for path, values in zip(paths[2:], (bounds, rows, np.add.reduceat(counted, rows[:-1])), strict=True):
        path.write_bytes(values.astype("<i8").tobytes())
    return {
        "rows": len(rows) - 1,
        "documents": len(documents),
        "tokens": int(bounds[-1]),
        "counted": int(counted.sum()),
    }
