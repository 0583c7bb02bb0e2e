"""What a job's unit asks on its node before it starts torchrun.

    python -m training.unit may-run JOB_DIR --run-id X --node NAME --local DIR
        exit 0: go on; 1: there is nothing to run here, now; 2: no usable state file; 255: try again, the only one that
        systemd takes for a failure here. Waits for the shared directory.
    python -m training.unit rendezvous --store ADDRESS:PORT --run-id X --output FILE
        waits for the store and writes MINOS_RENDEZVOUS=..., the rendezvous id to join, to FILE.

A rendezvous that torchrun has closed (workers that failed too often) stays closed, and every agent that asks for it
gives up. So the id is the start's own (the run id) and a generation, which whoever finds it closed advances once, by
compare-and-set in the store, for all agents alike.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from training.errors import UserError
from training.files import write_atomically
from training.state import ENDED, JobState

BUSY = ".trains"  # in the folder of the node's jobs: the one that may run here
PAUSE = 5  # seconds between two looks at a share that is not there
TRY = datetime.timedelta(seconds=5)  # to reach the store; between two tries a signal is heard


def may_run(job_dir: Path, run_id: str, node: str, local: Path, wait: Callable[[float], None] = time.sleep) -> int:
    """Whether torchrun shall start here; a line says why not. Returns the exit status.

    `local` is the folder of this node's jobs, on its own disk; the unit's torchrun holds a lock on it (flock).
    """
    state = JobState(job_dir)
    content = _read_patiently(state, wait)
    if not content:
        print(f"{state.file}: no such file; the job was never started")
        return 2
    job = content.get("job", job_dir.name)
    if content["state"] in ENDED:
        reason = f" ({content['reason']})" if content.get("reason") else ""
        print(f"job {job} is {content['state']}{reason}: nothing to run")
        return 1
    if run_id and content.get("run_id") not in (None, run_id):
        print(
            f"job {job} was started again without {node} ({content['run_id']}; here is {run_id}): the next train.yml "
            "that has it among its nodes takes it in"
        )
        return 1
    if other := _runs_already(local, job_dir.name):
        reason = f"{node} trains job {other}, and a node has one job at a time: stop that one, or choose other nodes"
        print(reason)
        if content["state"] == "starting":  # where it trains already, it goes on without this node
            state.fail(reason, node, run_id=run_id)
        return 1
    if node in content.get("given_up", []):  # somebody has mended it
        state.change(lambda now: now | {"given_up": [other for other in now.get("given_up", []) if other != node]})
    return 0


def _read_patiently(state: JobState, wait: Callable[[float], None]) -> dict[str, object]:
    """The state, as soon as the share is there: the head may boot more slowly than this node. Errors: StateError."""
    said = False
    while True:
        try:
            next(state.file.parents[1].iterdir(), None)
            return state.read()
        except OSError as error:
            if not said:
                print(f"waiting for the shared directory: {error}", flush=True)
            said = True
            wait(PAUSE)


def _runs_already(local: Path, job: str) -> str:
    """The name of another job that holds this node, or nothing; then this one is noted as the one to name."""
    busy, descriptor = local / BUSY, os.open(local, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_atomically(busy, job)
        return ""
    except BlockingIOError:
        return busy.read_text(encoding="utf-8") if busy.exists() else "(unknown)"
    finally:
        os.close(descriptor)


def join(store_address: str, run_id: str, output: Path) -> None:
    """Write the id of the rendezvous that is open to `output`. Waits as long as the store does not answer."""
    import torch.distributed as dist  # seconds, which the other question does not need

    host, _, port = store_address.rpartition(":")
    address = {"host_name": host, "port": int(port), "is_master": False, "wait_for_workers": False}
    store, said = None, False
    while store is None:
        try:
            store = dist.TCPStore(**address, timeout=TRY)
        except dist.DistError:
            if not said:
                print(f"waiting for the store at {store_address}", flush=True)
            said = True
    store.set_timeout(datetime.timedelta(seconds=60))
    rendezvous = f"{run_id}.{open_generation(store, run_id)}"
    write_atomically(output, f"MINOS_RENDEZVOUS={rendezvous}\n")
    print(f"rendezvous {rendezvous} at {store_address}", flush=True)


def open_generation(store, run_id: str) -> int:
    """The generation of `run_id` that is not closed, from 0; a closed one is left behind, by one agent for all."""
    key = f"minos/generation/{run_id}"
    generation = int(store.compare_set(key, "", "0"))
    while _closed(store, f"{run_id}.{generation}"):
        # Whatever stands there now is right: ours, or that of an agent which was quicker.
        generation = int(store.compare_set(key, str(generation), str(generation + 1)))
    return generation


def close(store_address: str, run_id: str) -> None:
    """Send home the agents of a job that has ended: those that wait for others, up to half an hour, and those whose
    workers wait for workers that will not come, as long. A node in the waiting list makes these look up.
    """
    import pickle

    import torch.distributed as dist
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

    host, _, port = store_address.rpartition(":")
    store = dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=TRY)
    backend = C10dRendezvousBackend(store, f"{run_id}.{open_generation(store, run_id)}")
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


def _closed(store, rendezvous: str) -> bool:
    """Whether torchrun has closed this rendezvous; read as its agents do it."""
    import pickle

    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

    found = C10dRendezvousBackend(store, rendezvous).get_state()
    return found is not None and pickle.loads(found[0]).closed


def _leave(*_: object) -> None:
    """Whoever stops a unit that waits has not made it fail: systemd takes a death by SIGTERM for a failure here."""
    os._exit(0)


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.unit", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    ask, meet = verbs.add_parser("may-run"), verbs.add_parser("rendezvous")
    ask.add_argument("job_dir", type=Path)
    ask.add_argument("--node", required=True)
    ask.add_argument("--local", type=Path, required=True)
    meet.add_argument("--store", required=True)
    meet.add_argument("--output", type=Path, required=True)
    for parser_ in (ask, meet):
        parser_.add_argument("--run-id", required=True)
    options = parser.parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)
    try:
        if options.verb == "may-run":
            return may_run(options.job_dir, options.run_id, options.node, options.local)
        join(options.store, options.run_id, options.output)
        return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        traceback.print_exception(error)
        return 255


if __name__ == "__main__":
    sys.exit(main())
