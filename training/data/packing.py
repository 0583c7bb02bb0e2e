"""Which documents share a row: first fit, the longest documents first.

Each document goes into the first row that has room for it. Taking the longest first fills the rows of real data to
99 % and more. The same lengths give the same rows.
"""

from __future__ import annotations

import numpy as np


def first_fit_decreasing(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """(documents, rows): the document numbers in the order of their rows, and where each row begins in it.

    Row r holds documents[rows[r]:rows[r + 1]]; no document is longer than `capacity`, which is the room of a row.
    Takes O(n log n) steps: the tree knows for each group of rows how much room the emptiest one has.
    """
    count = len(lengths)
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order].tolist()
    leaves = 1 << max(0, count - 1).bit_length()
    room = [capacity] * (2 * leaves)  # node k has the children 2k and 2k + 1; the leaves are the rows
    chosen, taken = [], []
    at = 0
    while at < count:
        length = descending[at]
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < length:
                node += 1
        # Equally long documents behind this one would all come to the same row as long as they fit.
        fits = room[node] // length
        end = at + 1
        while end < count and end - at < fits and descending[end] == length:
            end += 1
        chosen.append(node - leaves)
        taken.append(end - at)
        left = room[node] - (end - at) * length
        while room[node] != left:
            room[node] = left
            if node == 1:
                break
            left = max(left, room[node ^ 1])
            node //= 2
        at = end
    row_of = np.repeat(np.array(chosen, dtype=np.int64), taken)
    by_row = np.argsort(row_of, kind="stable")
    rows = np.concatenate([[0], np.cumsum(np.bincount(row_of))]) if count else np.zeros(1, dtype=np.int64)
    return order[by_row], rows.astype(np.int64)


def one_per_row(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for rows of one document each, in their order."""
    return np.arange(count), np.arange(count + 1)
