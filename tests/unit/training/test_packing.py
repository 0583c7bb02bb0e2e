"""Documents share rows by first fit, the longest first."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from training.data.packing import first_fit_decreasing, one_per_row


def rows_of(lengths: list[int], capacity: int) -> list[list[int]]:
    documents, rows = first_fit_decreasing(np.array(lengths, dtype=np.int64), capacity)
    return [documents[first:last].tolist() for first, last in itertools.pairwise(rows)]


def by_the_book(lengths: list[int], capacity: int) -> list[list[int]]:
    """First fit as everybody would write it, in quadratic time."""
    rows: list[list[int]] = []
    for document in sorted(range(len(lengths)), key=lambda document: (-lengths[document], document)):
        for row in rows:
            if sum(lengths[other] for other in row) + lengths[document] <= capacity:
                row.append(document)
                break
        else:
            rows.append([document])
    return rows


@pytest.mark.parametrize(("count", "capacity"), [(0, 8), (1, 8), (2, 8), (7, 8), (60, 9), (200, 64), (200, 1000)])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_first_fit_of_the_longest_first(count, capacity, seed):
    lengths = np.random.default_rng(seed).integers(1, min(capacity, 90) + 1, count).tolist()
    assert rows_of(lengths, capacity) == by_the_book(lengths, capacity)


def test_full_rows_and_equal_lengths():
    assert rows_of([5, 5, 5], 5) == [[0], [1], [2]]
    assert rows_of([2, 2, 2, 2, 2], 5) == [[0, 1], [2, 3], [4]]
    assert rows_of([1, 4, 2, 3], 5) == [[1, 0], [3, 2]]


def test_it_fills_the_rows_in_a_time_that_grows_with_their_number():
    lengths = np.random.default_rng(0).lognormal(4.7, 0.9, 200_000).astype(np.int64).clip(2, 512)
    seconds = []
    for count in (20_000, 200_000):
        began = time.process_time()
        documents, rows = first_fit_decreasing(lengths[:count], 512)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 30 * seconds[0]  # ten times as many; quadratic time would be a hundred times
    assert np.array_equal(np.sort(documents), np.arange(200_000))
    filled = np.add.reduceat(lengths[documents], rows[:-1])
    assert filled.max() <= 512
    assert filled.sum() / (512 * len(filled)) > 0.99


def test_one_per_row():
    documents, rows = one_per_row(3)
    assert (documents.tolist(), rows.tolist()) == ([0, 1, 2], [0, 1, 2, 3])
