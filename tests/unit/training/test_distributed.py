"""How long ranks wait for each other, and the small numbers that they exchange."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from training import distributed
from training.config import Config
from training.distributed import Patience, Place

CONFIG = Config(data_train="a.txt", timeout_start=900)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.delenv("RANK", raising=False)
    yield distributed.start(CONFIG, {})
    distributed.end()


def timeout() -> timedelta:
    return dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout


@pytest.mark.parametrize(
    ("settings", "seconds", "expected"),
    [
        ({}, [0.5], 60),  # not below a minute
        ({}, [20.0], 100),  # five times the slowest
        ({}, [20.0, 3.0], 100),  # a fast step takes nothing back
        ({}, [20.0, 40.0], 200),
        ({"timeout_step": 7}, [20.0], 7),  # the owner's word
        ({"compile": True}, [0.5], 300),  # a recompilation may come
    ],
)
def test_patience_follows_the_slowest_step(settings, seconds, expected, place):
    assert timeout() == timedelta(seconds=900)
    patience = Patience(place, Config(data_train="a.txt", timeout_start=900, **settings))
    for took in seconds:
        patience.saw(took)
    assert timeout() == timedelta(seconds=expected)
    patience.start_over()
    assert timeout() == timedelta(seconds=900)


def test_alone_the_exchanges_give_back_what_they_got(place):
    assert distributed.sum_over_ranks(place, torch.tensor([3, 4])) == [3, 4]
    assert distributed.table_of_ranks(place, torch.tensor([[1.0, 2.0]])).tolist() == [[[1.0, 2.0]]]
    assert distributed.agree(place, 5.0) == 5.0
