"""The ledger of samples: proof that the ranks together used every row that the order names, once and no other.

In every step each rank adds up the keys of the rows that it really used, the ranks exchange the sum, and each compares
it with what the pure function of data/order.py says. One line per step goes to `ledger.jsonl`:

    {"step", "first", "last", "sum", "total", "world_size"}

samples `first` to `last` (excluded, counted over all epochs), the sum of their keys, and the sum over the whole run
so far, which also stands in each checkpoint. The first line is {"rows", "seed"}.

    python -m training.ledger JOB_DIR       recomputes everything: exit 0 and one line, or 1 and what is wrong
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from training.data.order import key_of, sample_indices
from training.files import write_atomically

FILE = "ledger.jsonl"
MODULUS = 2**60  # sums stay exact in the int64 that the ranks exchange


class LedgerError(RuntimeError):
    """Samples were lost, repeated or taken from elsewhere; the message says at which step."""


def sum_of(samples: Iterable[int], rows: Iterable[int]) -> int:
    """The sum of the keys of (sample, row) pairs; each key has 40 bits, so that 2^20 of them fit the modulus."""
    return sum(key_of("ledger", sample, row) >> 23 for sample, row in zip(samples, rows, strict=True)) % MODULUS


def expected_sum(rows: int, seed: int, first: int, last: int) -> int:
    """What `sum_of` gives for samples `first` to `last` (excluded) in the order that the seed defines."""
    return sum_of(range(first, last), sample_indices(rows, seed, first, last))


class Ledger:
    """Rank 0's file; on other ranks (`active=False`) nothing is written. Lines wait in memory until `flush`."""

    def __init__(self, directory: Path, *, rows: int, seed: int, active: bool, resumed_at: int):
        self.file, self.active, self.torn = directory / FILE, active, False
        self.waiting: list[str] = []
        if active:
            kept = [line for line in read(self.file)[1:] if line["step"] <= resumed_at]
            lines = [json.dumps(line) + "\n" for line in ({"rows": rows, "seed": seed}, *kept)]
            try:
                write_atomically(self.file, "".join(lines))
            except OSError:
                self.waiting = lines if not self.file.exists() else []

    def step(self, **line: int) -> None:
        if self.active:
            self.waiting.append(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Write what waits; on a disk that is full it goes on waiting, after one line that says so."""
        if not self.waiting:
            return
        try:
            with self.file.open("a", encoding="utf-8") as stream:
                # Behind a line that a full disk has cut in half.
                stream.write("\n" * self.torn + "".join(self.waiting))
            self.waiting, self.torn = [], False
        except OSError as error:
            if not self.torn:
                print(f"alarm: {self.file} cannot be written ({error}); training goes on", flush=True)
            self.torn = True


def read(file: Path) -> list[dict[str, int]]:
    """The lines of a ledger but those that a crash or a full disk cut in half. A step that stands there again was made
    again, behind a checkpoint: what was from there on is undone, also where a full disk kept it from being cut off.
    """
    lines: list[dict[str, int]] = []
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                found = json.loads(line)
            except json.JSONDecodeError:
                continue
            while "step" in found and lines and lines[-1].get("step", 0) >= found["step"]:
                lines.pop()
            lines.append(found)
    return lines


def verify(file: Path) -> str:
    """One sentence about a ledger in which everything fits. Errors: LedgerError on the first thing that does not."""
    header, *lines = read(file) or [{}]
    if "rows" not in header or not lines:
        raise LedgerError(f"{file}: no ledger, or one without a step")
    rows, seed, total, at, gaps = header["rows"], header["seed"], 0, 0, 0
    for line in lines:
        step, first, last = line["step"], line["first"], line["last"]
        if first < at:
            raise LedgerError(f"{file}: step {step} repeats samples {first} to {at}")
        if first > at:  # these lines stayed on a node that was lost; the total still covers them
            gaps += 1
            total = (total + expected_sum(rows, seed, at, first)) % MODULUS
        if line["sum"] != expected_sum(rows, seed, first, last):
            raise LedgerError(f"{file}: step {step} did not use exactly samples {first} to {last}")
        total, at = (total + line["sum"]) % MODULUS, last
        if line["total"] != total:
            raise LedgerError(f"{file}: up to step {step} samples were lost or used twice")
    epochs, rest = divmod(at, rows)
    if epochs:
        partly = f"each of {rows} rows {epochs} times" + (f" and {rest} of them once more" if rest else "")
    else:
        partly = f"{rest} of {rows} rows, each once"
    missing = f" (lines missing at {gaps} places, covered by the total)" if gaps else ""
    return f"{at} samples in {lines[-1]['step']} steps: {partly}{missing}"


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.ledger", description=__doc__.splitlines()[0])
    parser.add_argument("job_dir", type=Path)
    try:
        print(verify(parser.parse_args(arguments).job_dir / FILE))
    except (LedgerError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
