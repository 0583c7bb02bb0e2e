"""Where the agents of a job meet: rendezvous ids in the store on the head, beside what torchrun itself makes of them.

A rendezvous that torchrun has closed (workers that failed too often) stays closed, and every agent that asks for it
gives up. So the id is the start's own (the run id) and a generation, which whoever finds it closed advances once, by
compare-and-set in the store, for all agents alike.

torch is loaded where it is needed: that takes seconds, which not every question of the unit has to wait for.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from pathlib import Path

from training.files import write_atomically

TRY = datetime.timedelta(seconds=5)  # to reach the store; between two tries a signal is heard
GENERATION = "minos/generation/{}"  # the store's key for the newest of a run id
GONE = 75  # exit status of a worker that may be started again, if there is still something to do


def connected(store_address: str):
    """A client of the store at ADDRESS:PORT. Errors: torch's DistError, when it does not answer within TRY."""
    import torch.distributed as dist

    host, _, port = store_address.rpartition(":")
    return dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=TRY)


def join(store_address: str, run_id: str, output: Path) -> None:
    """Write the id of the rendezvous that is open to `output`. Waits as long as the store does not answer."""
    import torch.distributed as dist

    store, said = None, False
    while store is None:
        try:
            store = connected(store_address)
        except dist.DistError:
            if not said:
                print(f"waiting for the store at {store_address}", flush=True)
            said = True
    store.set_timeout(datetime.timedelta(seconds=60))
    rendezvous = f"{run_id}.{open_generation(store, run_id)}"
    # The clock's state, so that workers see when it is set (meeting.py).
    write_atomically(output, f"MINOS_RENDEZVOUS={rendezvous}\nMINOS_CLOCK={time.time() - time.monotonic():.3f}\n")
    print(f"rendezvous {rendezvous} at {store_address}", flush=True)


def open_generation(store, run_id: str) -> int:
    """The generation of `run_id` that is not closed, from 0; a closed one is left behind, by one agent for all."""
    key = GENERATION.format(run_id)
    generation = int(store.compare_set(key, "", "0"))
    while is_closed(store, f"{run_id}.{generation}"):
        # Whatever stands there now is right: ours, or that of an agent which was quicker.
        generation = int(store.compare_set(key, str(generation), str(generation + 1)))
    return generation


def close(store_address: str, run_id: str) -> None:
    """Send home the agents of a job that has ended: those that wait for others, up to half an hour, and those whose
    workers wait for workers that will not come, as long. A node in the waiting list makes these look up.
    """
    import pickle

    from torch.distributed.elastic.rendezvous import dynamic_rendezvous
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

    store = connected(store_address)
    newest = int(store.compare_set(GENERATION.format(run_id), "", "0"))
    for generation in range(newest + 1):  # torchrun closes one without a bell, and some may still be in it
        backend = C10dRendezvousBackend(store, f"{run_id}.{generation}")
        written = False
        while not written:  # somebody else may have written meanwhile
            found, token = backend.get_state() or (None, None)
            state = pickle.loads(found) if found else dynamic_rendezvous._RendezvousState()
            state.closed = True
            bell = dynamic_rendezvous._NodeDesc("the job has ended", os.getpid(), 0)
            state.wait_list.add(bell)
            state.last_heartbeats[bell] = datetime.datetime.now(datetime.UTC)
            answer = backend.set_state(pickle.dumps(state), token)
            written = bool(answer and answer[2])


def is_closed(store, rendezvous: str) -> bool:
    """Whether torchrun has closed this rendezvous."""
    state = state_of(store, rendezvous)
    return state is not None and state.closed


def state_of(store, rendezvous: str):
    """torchrun's own record of a rendezvous, read as its agents do it; None before there is one."""
    import pickle

    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

    found = C10dRendezvousBackend(store, rendezvous).get_state()
    return pickle.loads(found[0]) if found else None


def send_home() -> None:
    """From a process of a job that Minos has started and that has just failed: tell the agents of all nodes. Where the
    store does not answer, a line says so, and they find out for themselves, in minutes.
    """
    store, run_id = os.environ.get("MINOS_STORE"), os.environ.get("MINOS_RUN_ID")
    if store and run_id:
        try:
            close(store, run_id)
        except Exception as problem:  # of sockets, of torch's store, of its rendezvous: the job has failed all the same
            print(f"the other nodes cannot be told that the job has failed: {problem}", file=sys.stderr, flush=True)


def leave_failed(rank: int, node: str) -> None:
    """End a worker that finds its job failed. Under Minos not with status 0: an agent whose workers have ended well
    waits five minutes for the others' (torchrun's exit barrier); one that restarts them finds the rendezvous closed.
    """
    if os.environ.get("MINOS_STORE") and os.environ.get("MINOS_RUN_ID"):
        print(f"rank {rank} ({node}): the job has failed already, this one goes too", file=sys.stderr, flush=True)
        send_home()  # whoever was to tell them may have been ended by torchrun meanwhile
        sys.exit(GONE)
