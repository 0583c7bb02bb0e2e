"""How long ranks wait for each other, and the small numbers that they exchange."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from training import distributed
from training.config import Config
from training.distributed import CardLostError, Patience, Place, SetupError, is_card_failure

CONFIG = Config(data_train="a.txt", timeout_start=900)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.delenv("RANK", raising=False)
    yield distributed.start(CONFIG)
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


def test_agents_are_missed_until_the_first_step(place, monkeypatch):
    """NCCL knows no time limit while it connects, which is long after the meeting."""
    ended = []
    monkeypatch.setattr(distributed.meeting, "unattended", lambda: ended.append(True))
    patience = Patience(place, CONFIG)
    with patience.unhurried():
        assert ended == [], "an evaluation before"
    patience.saw(1.0)
    assert ended


def test_an_evaluation_may_take_as_long_as_a_start_and_then_steps_are_watched_again(place):
    patience = Patience(place, CONFIG)
    with patience.unhurried():  # before the first step
        assert timeout() == timedelta(seconds=900)
    assert timeout() == timedelta(seconds=900)
    patience.saw(20.0)
    with patience.unhurried():
        assert timeout() == timedelta(seconds=900)
    assert timeout() == timedelta(seconds=100)
    patience.saw(400.0)
    with patience.unhurried():  # never shorter than what the steps have
        assert timeout() == timedelta(seconds=2000)


def test_torchrun_on_several_machines_needs_a_store_for_each_attempt(monkeypatch):
    """Two machines of one process each, restarts allowed, torchrun's default of one store for all attempts."""
    store = dist.HashStore()
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    launched = {"RANK": "0", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in (launched | {"TORCHELASTIC_MAX_RESTARTS": "3"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=r"set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on all of them"):
        distributed.start(CONFIG)
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"package torch": "1.0"}, "package torch; make them equal"),
        ({"backend": "nccl"}, "backend; where it is gloo torch sees no GPU: leave those out"),
    ],
)
def test_where_nothing_is_restarted_one_store_will_do(other, said, monkeypatch):
    """It goes on to compare the ranks: the other one, which is here already, has another torch, or a GPU."""
    store = dist.HashStore()
    facts = distributed._facts(CONFIG, "gloo") | other
    store.set("facts-1", json.dumps(facts))
    store.set("rank-1", json.dumps({"node": "node2", "digest": "another"}))
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    launched = {"RANK": "0", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in (launched | {"TORCHELASTIC_MAX_RESTARTS": "0"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=rf"^node2 \(rank 1\) does not run the same as .* \(rank 0\): {said}"):
        distributed.start(CONFIG)


def test_frozen_weights_are_not_sent_and_the_others_are(place):
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    layers[0].requires_grad_(False)
    ddp = distributed.data_parallel(layers, CONFIG)
    assert ddp.parameters_to_ignore == {"0.weight", "0.bias"}


def test_alone_the_exchanges_give_back_what_they_got(place):
    assert distributed.sum_over_ranks(place, torch.tensor([3, 4])) == [3, 4]
    assert distributed.table_of_ranks(place, torch.tensor([[1.0, 2.0]])).tolist() == [[[1.0, 2.0]]]
    assert distributed.agree(place, 5.0) == 5.0


def test_drivers_count_where_they_are_used_unless_their_owner_lets_them_differ(monkeypatch):
    monkeypatch.setattr(distributed.parity, "describe", lambda **_: {"driver": "580.1", "python": "3.11"})
    monkeypatch.delenv("MINOS_ANY_DRIVER", raising=False)
    assert "driver" in distributed._facts(CONFIG, "nccl")
    assert "driver" not in distributed._facts(CONFIG, "gloo")
    monkeypatch.setenv("MINOS_ANY_DRIVER", "1")
    assert "driver" not in distributed._facts(CONFIG, "nccl")


NO_DRIVER, OLD, NEW = {"torch": "2"}, {"torch": "2", "driver": "570.1"}, {"torch": "2", "driver": "580.1"}


@pytest.mark.parametrize(
    ("ranks", "different"),
    [
        ([NO_DRIVER, OLD], ""),
        ([OLD, NO_DRIVER, OLD], ""),
        ([NO_DRIVER, OLD | {"torch": "3"}], r"node2 \(rank 1\) does not run .*: torch;"),
        ([OLD, NO_DRIVER | {"torch": "3"}], r"node2 \(rank 1\) does not run .*: torch;"),
        ([OLD, NEW], r"node2 \(rank 1\) does not run .*: driver;"),
        ([NO_DRIVER, OLD, OLD, NEW], r"node4 \(rank 3\) does not run .*: driver;"),
        # More than a report names are without what rank 0 has: they must not hide the one that matters.
        ([NO_DRIVER, *[OLD] * 10, OLD | {"torch": "3"}], r"node12 \(rank 11\) does not run .*: torch;"),
    ],
)
def test_a_driver_that_is_not_everywhere_is_no_difference(ranks, different, monkeypatch):
    store = dist.HashStore()

    def agree(rank: int) -> tuple[str, ...]:
        monkeypatch.setattr(distributed, "node_name", lambda: f"node{rank + 1}")
        return distributed._require_agreement(store, rank, len(ranks), ranks[rank])

    # Each of the others leaves its own facts, and waits in vain for those who have not come yet.
    store.set_timeout(timedelta(milliseconds=1))
    for rank in range(1, len(ranks)):
        with pytest.raises(dist.DistStoreError, match="timeout"):
            agree(rank)
    with pytest.raises(SetupError, match=different) if different else contextlib.nullcontext():
        assert agree(0) == tuple(f"node{rank + 1}" for rank in range(len(ranks)))


@pytest.mark.parametrize("backend", ["auto", "nccl"])
def test_nothing_goes_on_on_a_cpu_that_began_on_gpus(backend, monkeypatch):
    monkeypatch.setenv("MINOS_GPUS", "2")
    with pytest.raises(CardLostError, match=r"torch sees 0 of the 2 GPUs that the job was started with"):
        distributed.choose_device(backend)
    assert distributed.choose_device("gloo") == (torch.device("cpu"), "gloo"), "that is how it began"
    monkeypatch.setenv("MINOS_GPUS", "0")
    assert distributed.choose_device("auto") == (torch.device("cpu"), "gloo")


def test_a_fault_of_the_card_is_told_from_one_of_the_program():
    assert is_card_failure(RuntimeError("CUDA error: unknown error"))
    assert not is_card_failure(RuntimeError("CUDA error: unspecified launch failure")), "a bad kernel does that, too"
    assert is_card_failure(torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"))
    assert not is_card_failure(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_card_failure(ValueError("CUDA error: unknown error"))
