"""Which rows belong to which step."""

from __future__ import annotations

import pytest
import torch

from training.data import key_of, micro_batches_of, order, sample_indices


def test_every_epoch_has_every_row_once_in_another_order():
    epochs = [sample_indices(13, 1, 13 * epoch, 13 * (epoch + 1)) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(13))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_order_depends_on_seed_and_position_only():
    whole = sample_indices(50, 7, 0, 200)
    order._epoch_order.cache_clear()
    torch.manual_seed(99)
    assert [sample_indices(50, 7, at, at + 1)[0] for at in reversed(range(200))] == whole[::-1]
    assert sample_indices(50, 8, 0, 200) != whole


@pytest.mark.parametrize("world_size", range(1, 12))
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_micro_batches_are_shared_out_completely_and_evenly(world_size, count):
    shares = [micro_batches_of(rank, world_size, count) for rank in range(world_size)]
    assert [index for share in shares for index in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_eight_over_three():
    assert [len(micro_batches_of(rank, 3, 8)) for rank in range(3)] == [3, 3, 2]


def test_keys_are_seeds_that_torch_takes_and_neighbours_differ():
    keys = {key_of(1, "order", epoch) for epoch in range(1000)}
    assert len(keys) == 1000
    for key in (min(keys), max(keys)):
        torch.Generator().manual_seed(key)
    assert key_of(1, "order", 0) == 1341983847465664397
