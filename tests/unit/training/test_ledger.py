"""The proof that every row was used once: what it accepts and what it finds."""

from __future__ import annotations

import errno
import io
import json
import os
from collections import Counter

import pytest

from training import ledger
from training.data.order import sample_indices
from training.ledger import Ledger, LedgerError

ROWS, SEED, BATCH = 10, 3, 4


def write(directory, samples=25, *, resumed_at=0, first_step=1):
    """The ledger of steps `first_step`.. up to `samples`, as a run would write it."""
    book = Ledger(directory, rows=ROWS, seed=SEED, active=True, resumed_at=resumed_at)
    starts = list(range(0, samples, BATCH))
    for step in range(first_step, len(starts) + 1):
        first, last = starts[step - 1], min(starts[step - 1] + BATCH, samples)
        own = ledger.expected_sum(ROWS, SEED, first, last)
        total = ledger.expected_sum(ROWS, SEED, 0, last)
        book.step(step=step, first=first, last=last, sum=own, total=total, world_size=3)
    book.flush()
    return directory / ledger.FILE


def change(file, step, **fields):
    header, *lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[step - 1] |= fields
    file.write_text("".join(json.dumps(line) + "\n" for line in [header, *lines]))


def test_whole_ledger_is_counted(tmp_path):
    assert ledger.verify(write(tmp_path)) == "25 samples in 7 steps: each of 10 rows 2 times and 5 of them once more"
    assert ledger.main([str(tmp_path)]) == 0
    assert ledger.verify(write(tmp_path, samples=6)) == "6 samples in 2 steps: 6 of 10 rows, each once"


def test_the_order_names_every_row_once_per_epoch():
    counts = Counter(sample_indices(ROWS, SEED, 0, 3 * ROWS))
    assert counts == dict.fromkeys(range(ROWS), 3)


@pytest.mark.parametrize(
    ("step", "fields", "found"),
    [
        (3, {"first": 7}, "step 3 repeats samples 7 to 8"),
        (3, {"sum": 1}, "step 3 did not use exactly samples 8 to 12"),
        (3, {"total": 1}, "up to step 3 samples were lost or used twice"),
    ],
)
def test_what_does_not_fit_is_found(step, fields, found, tmp_path, capsys):
    file = write(tmp_path)
    change(file, step, **fields)
    with pytest.raises(LedgerError, match=found):
        ledger.verify(file)
    assert ledger.main([str(tmp_path)]) == 1
    assert found in capsys.readouterr().err


def test_a_swapped_row_changes_the_sum():
    rows = sample_indices(ROWS, SEED, 0, BATCH)
    swapped = [rows[1], rows[0], *rows[2:]]
    assert ledger.sum_of(range(BATCH), swapped) != ledger.sum_of(range(BATCH), rows)
    assert ledger.sum_of(range(BATCH), rows) == ledger.expected_sum(ROWS, SEED, 0, BATCH)


def test_what_was_made_again_counts_once_also_where_the_disk_was_full(tmp_path, monkeypatch):
    """What lies behind the checkpoint cannot be cut off then, and the same steps come once more behind it."""
    file = write(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "write_atomically", full)
        write(tmp_path, resumed_at=3, first_step=4)
    assert len(file.read_text().splitlines()) == 1 + 7 + 4
    assert [line["step"] for line in ledger.read(file)[1:]] == list(range(1, 8))
    assert ledger.verify(file).startswith("25 samples in 7 steps")
    # And of a write that came half-way: whole lines of it stand there, and all of it again.
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:6], lines[6][:20] + "\n", *lines[4:8]]))
    assert ledger.verify(file).startswith("25 samples in 7 steps")


def test_resume_drops_the_steps_past_the_checkpoint(tmp_path):
    file = write(tmp_path)
    write(tmp_path, resumed_at=3, first_step=4)
    assert [line["step"] for line in ledger.read(file)[1:]] == list(range(1, 8))
    ledger.verify(file)


def test_on_a_full_disk_the_lines_wait_and_a_half_one_counts_for_nothing(tmp_path, monkeypatch, capsys):
    book = Ledger(tmp_path, rows=ROWS, seed=SEED, active=True, resumed_at=0)

    def step(number: int) -> None:
        first, last = BATCH * (number - 1), BATCH * number
        sums = {"sum": ledger.expected_sum(ROWS, SEED, first, last), "total": ledger.expected_sum(ROWS, SEED, 0, last)}
        book.step(step=number, first=first, last=last, **sums, world_size=1)
        book.flush()

    class Full(io.StringIO):
        """Takes the first 30 characters."""

        def write(self, text: str) -> int:
            os.write(handle, text[:30].encode())
            raise OSError(errno.ENOSPC, "No space left on device")

    step(1)
    handle = os.open(book.file, os.O_WRONLY | os.O_APPEND)
    with monkeypatch.context() as disk:
        disk.setattr(type(book.file), "open", lambda *_, **__: Full())
        step(2)
        step(3)
    assert capsys.readouterr().out.count("alarm: ") == 1
    os.close(handle)
    step(4)
    assert ledger.verify(book.file) == "16 samples in 4 steps: each of 10 rows 1 times and 6 of them once more"


def test_lost_lines_are_said_and_the_total_still_covers_them(tmp_path):
    file = write(tmp_path)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3] + lines[5:]))
    assert ledger.verify(file).endswith("(lines missing at 1 places, covered by the total)")


def test_no_ledger_and_a_line_cut_in_half(tmp_path):
    with pytest.raises(LedgerError, match="no ledger"):
        ledger.verify(tmp_path / ledger.FILE)
    file = write(tmp_path)
    whole = len(ledger.read(file))
    file.write_text(file.read_text()[:-20])
    assert len(ledger.read(file)) == whole - 1


def test_other_ranks_write_nothing(tmp_path):
    book = Ledger(tmp_path, rows=ROWS, seed=SEED, active=False, resumed_at=0)
    book.step(step=1)
    book.flush()
    assert not list(tmp_path.iterdir())
