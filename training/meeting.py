"""Until the workers of a start have made a step together: whether the agents of all nodes are still there.

While they wait for each other there is no connection yet that could break, and they would wait for those of a lost node
to the last second; NCCL, which connects with the first collective, knows no limit at all there. But torchrun's agents
find out who is missing: they drop from their record one that has said nothing for eight seconds.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from training.rendezvous import GONE, connected, state_of

HEARD = 6.5
"""Seconds. An agent says something every two to four and is dropped after eight (minos-train@.service): one that was
heard more recently has left by itself, to meet the others anew, and its own agent restarts this worker."""
STRANGER = 60
"""Seconds that an agent may be missing that was so from the first look on: if it is there, its workers come."""
STEPPED = 3
"""Seconds by which a clock must be off since the unit was started (MINOS_CLOCK) to count as set."""
CLOCK = "minos/clock/{}"  # the store's key of a rendezvous: some node's clock was set, so its agent may seem silent


_over: list[threading.Event] = []


def attend(pause: float = 2.0) -> None:
    """From now on this worker ends (GONE) as soon as the agent of a node is gone, or the rendezvous closed. torchrun
    starts the workers again then, with the nodes that are left. Outside of Minos nothing is watched.
    """
    names = ("MINOS_STORE", "MINOS_RENDEZVOUS", "GROUP_WORLD_SIZE")
    store, rendezvous, nodes = (os.environ.get(name, "") for name in names)
    if store and rendezvous and nodes:
        # Here, as two threads should not import at once.
        import torch.distributed.elastic.rendezvous.c10d_rendezvous_backend  # noqa: F401

        watch, over = Watch(int(nodes), time.monotonic()), threading.Event()
        _over.append(over)
        threading.Thread(target=_attend, args=(store, rendezvous, watch, over, pause), daemon=True).start()


def unattended() -> None:
    """The ranks miss each other by themselves from now on, or this one has its own reason to end."""
    for over in _over:
        over.set()
    _over.clear()


class Watch:
    """Who of `nodes` agents has left, from torchrun's record as it is at each look."""

    def __init__(self, nodes: int, began: float):
        self.nodes, self.began = nodes, began
        self._beats: dict[object, object] = {}
        self._heard: dict[object, float] = {}
        self._silent: dict[object, float] = {}
        """For those that are gone: how long they had said nothing when that was seen."""

    def look(self, record, now: float) -> str:
        """Why there is nobody to wait for, in one line; empty while there is."""
        if record.closed:
            return "this rendezvous is over"
        for node in record.participants:
            beat = record.last_heartbeats[node]
            # Heard now; or, at the first look, as long ago as it is behind the others.
            if self._beats.get(node) != beat:
                late = (max(record.last_heartbeats.values()) - beat).total_seconds()
                self._heard[node] = now if node in self._beats else now - late
                self._beats[node] = beat
        for node, at in self._heard.items():
            if node not in record.participants:
                self._silent.setdefault(node, now - at)
        by_themselves = sum(seconds < HEARD for seconds in self._silent.values())
        lost = self.nodes - len(record.participants) - by_themselves
        if lost > 0 and (len(self._silent) > by_themselves or now - self.began > STRANGER):
            return f"{lost} of {self.nodes} nodes left before the first step"
        return ""


def _attend(store_address: str, rendezvous: str, watch: Watch, over: threading.Event, pause: float) -> None:
    store, said = None, False
    while not over.wait(pause):
        try:
            store = store or connected(store_address)
            if clock_was_set():
                store.set(CLOCK.format(rendezvous), "set")
            record = state_of(store, rendezvous)
            reason = watch.look(record, time.monotonic()) if record else ""
            spared = reason and not record.closed and store.check([CLOCK.format(rendezvous)])
        except Exception:  # of sockets, of torch's store, of its rendezvous
            store, reason, spared = None, "", False
            if not said and not over.is_set():  # without the error's own words, which would be taken for a cause
                print("whether all nodes are still there cannot be seen right now", file=sys.stderr, flush=True)
            said = True
        if reason and not spared and not over.is_set():
            print(reason, flush=True)
            os._exit(GONE)


def clock() -> float:
    """What the steady clock lacks of the time of day: it changes when somebody sets the clock."""
    return time.time() - time.monotonic()


def clock_was_set() -> bool:
    """Whether somebody has since this node's unit was started."""
    then = os.environ.get("MINOS_CLOCK", "")
    return bool(then) and abs(clock() - float(then)) > STEPPED
