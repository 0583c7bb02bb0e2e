"""What a job's unit asks on its node before it starts torchrun.

    python -m training.unit may-run JOB_DIR --run-id X --node NAME --local DIR
        exit 0: go on; 1: there is nothing to run here, now; 2: no usable state file; 255: try again, the only one that
        systemd takes for a failure here. Waits for the shared directory.
    python -m training.unit rendezvous --store ADDRESS:PORT --run-id X --output FILE
        waits for the store and writes MINOS_RENDEZVOUS=..., the rendezvous id to join, and MINOS_CLOCK=... to FILE (see
        rendezvous.py and meeting.py).

Both belong to minos-train@.service.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from training import cards
from training.errors import UserError
from training.files import FULL
from training.rendezvous import join, send_home
from training.state import ENDED, JobState, StateError

DRIVER_SECONDS = 60  # that the driver may take after a boot
PAUSE = 5  # seconds between two looks at a share that is not there, or at who holds the node
UNSEEN_LOOKS = 3  # after which somebody without a command line to be known by is no agent that begins or leaves
LEAVING_SECONDS = 600  # that a job which has ended, or gives way, may still hold the node
UNKNOWN = "(unknown)"


def may_run(job_dir: Path, run_id: str, node: str, local: Path, wait: Callable[[float], None] = time.sleep) -> int:
    """Whether torchrun shall start here; a line says why not. Returns the exit status.

    `local` is the folder of this node's jobs, on its own disk; the unit's torchrun holds a lock on it (flock).
    """
    state, said = JobState(job_dir), False
    for look in itertools.count(1):
        content = _read_patiently(state, wait)
        if status := _nothing_to_run(content, state, run_id, node):
            return status
        if not (other := _runs_already(local)):
            break
        if other == UNKNOWN:
            leaves = look < UNSEEN_LOOKS
        else:
            leaves = look * PAUSE < LEAVING_SECONDS and _gives_way(job_dir.with_name(other), content)
        if not leaves:
            trains = f"{node} trains job {other}, and a node has one job at a time"
            print(reason := f"{trains}: stop that one, or choose other nodes")
            # Where it trains already, it goes on without this node.
            if content["state"] == "starting" and state.fail(reason, node, run_id=run_id):
                send_home()
            return 1
        if not said and other != UNKNOWN:
            print(f"job {other} still holds {node}, and gives way to this one: waiting until it has left", flush=True)
            said = True
        wait(PAUSE)
    require_cards(node, wait)
    for gone in ("given_up", "without"):  # somebody has mended it, or taken it in again
        if node in content.get(gone, []):
            _note(state, lambda now, gone=gone: now | {gone: [other for other in now.get(gone, []) if other != node]})
    if content.get("nodes") and node not in (*content["nodes"], *content.get("came_back", [])):
        _note(state, lambda now: now | {"came_back": sorted({*now.get("came_back", []), node})})
    return 0


def _nothing_to_run(content: dict[str, object], state: JobState, run_id: str, node: str) -> int:
    """The exit status, and a line, where the state file leaves this node nothing to do; else 0."""
    job = content.get("job", state.file.parent.name)
    if not content:
        print(f"{state.file}: no such file; the job was never started")
        return 2
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
    return 0


def _note(state: JobState, how: Callable[[dict[str, object]], dict[str, object]]) -> None:
    """Change the state file, unless the share is full: the node is missed at work more than in the file."""
    try:
        state.change(how)
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"alarm: {state.file} cannot be written ({error.strerror}); going on without", flush=True)


def _gives_way(other: Path, content: dict[str, object]) -> bool:
    """Whether the job in this folder, which holds the node, leaves it to the one with this `content`: it has ended, and
    its agent goes; or both only start, and it began later. Each may hold a node that the other needs: without an order
    both would fail.
    """
    with contextlib.suppress(StateError):
        there = JobState(other).read()
        both_start = content["state"] == there.get("state") == "starting"
        return there.get("state") in ENDED or (both_start and _began(content) < _began(there))
    return False


def _began(content: dict[str, object]) -> tuple[str, str]:
    return str(content.get("started", "")), str(content.get("run_id", ""))


def require_cards(node: str, wait: Callable[[float], None]) -> None:
    """Wait for the driver, which a boot may bring later. Errors: RuntimeError, where it has fewer cards than the job
    was started with: the node tries again a few times, and the others go on without it.
    """
    for patience in range(0, DRIVER_SECONDS + PAUSE, PAUSE):
        there = cards.of_driver()
        if there >= cards.wanted():
            return
        if patience == 0:
            print(f"waiting for the NVIDIA driver: {there} of {cards.wanted()} GPUs", flush=True)
        wait(PAUSE)
    raise RuntimeError(cards.missing(node, "the driver", there))


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


def _runs_already(local: Path) -> str:
    """The name of another job that holds this node, UNKNOWN where that shows nowhere, or nothing."""
    descriptor = os.open(local, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return ""
    except BlockingIOError:
        return next(_agents(local), UNKNOWN)
    finally:
        os.close(descriptor)


def _agents(local: Path) -> Iterator[str]:
    """The jobs of the agents that are at work here, from their command lines: a name in a file would be that of who
    tried last, not of who holds the lock.
    """
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile
            continue
        # flock itself, before it has become the agent, may not get the lock.
        if "torch.distributed.run" not in words or "--local-dir" not in words or Path(words[0]).name == "flock":
            continue
        folder = Path(words[words.index("--local-dir") + 1])
        if folder.parent == local:
            yield folder.name


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
        # Before the others wait for it: a node that leaves again each time would have them start anew each time.
        if cards.wanted() and (lost := cards.missing(os.environ.get("MINOS_NODE", ""), "torch", cards.of_torch())):
            raise RuntimeError(lost)
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
