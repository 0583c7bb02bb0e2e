"""Workers do not wait for those of a node that is gone. With torchrun's own rendezvous and a real store."""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from tests.unit.training.conftest import free_port, handler
from training import meeting, rendezvous
from training.failures.causes import cause_of


@contextlib.contextmanager
def attended(pause: float) -> Iterator[None]:
    meeting.attend(pause)
    try:
        yield
    finally:
        meeting.unattended()


@pytest.fixture
def left(monkeypatch) -> threading.Event:
    """Set when this process would have ended."""
    event = threading.Event()
    monkeypatch.setattr(meeting.os, "_exit", lambda status: event.set())
    return event


@pytest.fixture
def agents(store, monkeypatch) -> Iterator[list]:
    """Three that have met, and this process is a worker of one. They beat each second or two, and drop after six."""
    found = [handler(store, "r1.0", keep_alive_interval=1, keep_alive_max_attempt=6) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda agent: agent.next_rendezvous(), found))
    for name, value in {"MINOS_STORE": store, "MINOS_RENDEZVOUS": "r1.0", "GROUP_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(meeting, "HEARD", 4)
    yield found
    for agent in found:
        agent._stop_heartbeats()


def test_nobody_leaves_while_all_agents_are_there(agents, left):
    with attended(pause=0.2):
        assert not left.wait(8)


def test_an_agent_that_falls_silent_is_missed(agents, left, capsys):
    with attended(pause=0.2):
        time.sleep(1)
        agents[1]._stop_heartbeats()
        assert left.wait(12)
    assert "1 of 3 nodes left before the first step" in capsys.readouterr().out


def test_so_is_one_that_was_silent_before_the_first_look(agents, left):
    agents[1]._stop_heartbeats()
    time.sleep(4)
    with attended(pause=0.2):
        assert left.wait(8)


def test_so_is_one_that_was_dropped_before_it_but_its_workers_may_still_come(agents, left, monkeypatch):
    agents[1]._stop_heartbeats()
    time.sleep(9)
    with attended(pause=0.2):
        assert not left.wait(3)
    monkeypatch.setattr(meeting, "STRANGER", 1)
    with attended(pause=0.2):
        assert left.wait(4)


def test_a_rendezvous_that_was_closed_is_over(agents, left, store, capsys):
    with attended(pause=0.2):
        agents[1].set_closed()
        assert left.wait(4)
    assert "this rendezvous is over" in capsys.readouterr().out


def test_a_node_whose_clock_was_set_back_is_not_taken_for_gone(agents, left, store, monkeypatch):
    """torch's agent says nothing then until its clock is where it was, and the others drop it."""
    monkeypatch.setenv("MINOS_CLOCK", str(meeting.clock() + 3600))
    with attended(pause=0.2):
        time.sleep(1)
        agents[1]._stop_heartbeats()
        assert not left.wait(9)
    record = rendezvous.state_of(rendezvous.connected(store), "r1.0")
    assert len(record.participants) == 2, "nobody has dropped it: this shows nothing"


def test_outside_of_minos_nothing_is_watched(agents, left, monkeypatch):
    monkeypatch.delenv("MINOS_STORE")
    agents[1].set_closed()
    with attended(pause=0.2):
        assert not left.wait(2)


def test_a_store_that_does_not_answer_is_asked_again_and_is_no_reason(agents, left, store, monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "TRY", datetime.timedelta(seconds=1))
    monkeypatch.setenv("MINOS_STORE", f"127.0.0.1:{free_port()}")
    with attended(pause=0.1):
        time.sleep(4)
    said = capsys.readouterr().err.strip()
    assert said.splitlines() == ["whether all nodes are still there cannot be seen right now"]
    assert cause_of([said]) is None and not left.is_set()


def record(**beats: float) -> SimpleNamespace:
    """What agents have written at these seconds."""
    times = {name: datetime.datetime.fromtimestamp(at, datetime.UTC) for name, at in beats.items()}
    return SimpleNamespace(closed=False, participants=list(times), last_heartbeats=times)


def test_one_that_leaves_by_itself_is_not_lost_and_the_others_are_watched_on():
    watch = meeting.Watch(3, began=100)
    assert watch.look(record(a=100, b=100, c=100), 100) == ""
    assert watch.look(record(a=102, b=102, c=100), 102) == ""
    assert watch.look(record(a=104, c=100), 104) == "", "b was heard two seconds ago"
    assert watch.look(record(a=108), 109) == "1 of 3 nodes left before the first step"
    alone = meeting.Watch(3, began=100)
    alone.look(record(a=100, b=100, c=100), 100)
    assert alone.look(record(c=102), 102) == "" == alone.look(record(c=300), 300)
