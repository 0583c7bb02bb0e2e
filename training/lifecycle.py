"""How a run starts, is asked to stop, and fails: the link between the training loop and the job's state
file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from training.checkpoint import CheckpointError
from training.config import ConfigError
from training.data import DataError
from training.distributed import SetupError, is_peer_failure, node_name
from training.model import ModelError
from training.state import ENDED, JobState, StateError

STOP_FILE = "stop-requested"
LEAVING = 75  # exit status after a signal: saved, not finished, start me again
OUR_ERRORS = (
    ConfigError,
    DataError,
    ModelError,
    SetupError,
    CheckpointError,
    StateError,
)  # their one line says it all


class NonFiniteError(RuntimeError):
    """A loss or gradient that is not a number, raised on all ranks before the optimizer sees it."""

    def __init__(self, what: str, step: int, ranks: list[int], nodes: tuple[str, ...]):
        blamed = ", ".join(f"rank {rank} ({nodes[rank]})" for rank in ranks)
        super().__init__(f"{what} is not finite at step {step} on {blamed}; lower lr or look at the data of that step")
        self.rank, self.node = ranks[0], nodes[ranks[0]]


class Stop:
    """Whether somebody wants this run to end: a signal to this process, or the file that says the whole job
    shall.
    """

    def __init__(self, job_dir: Path):
        self.job_dir = job_dir
        self.signalled = False
        self._looked, self._recorded = float("-inf"), False

    def listen(self) -> None:
        """From now on SIGTERM and Ctrl-C wait for the end of the step; before, there is nothing to save."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, *_: object) -> None:
        self.signalled = True

    def recorded(self, *, now: bool = False) -> bool:
        """Whether the stop of the whole job is recorded; without `now` it looks at most once per second.

        The directory is listed because an NFS client answers a single missing name from its cache for half a
        minute.
        """
        if now or time.monotonic() - self._looked > 1:
            self._looked, self._recorded = (
                time.monotonic(),
                any(path.name == STOP_FILE for path in self.job_dir.iterdir()),
            )
        return self._recorded


def run_id() -> str:
    """Which start of the job this is: Minos's id, by hand torchrun's or that of the only process."""
    by_hand = os.environ.get("TORCHELASTIC_RUN_ID", f"process-{os.getpid()}")
    # torchrun says "none" when it was given no id: then starts cannot be told apart.
    return os.environ.get("MINOS_RUN_ID") or ("" if by_hand == "none" else by_hand)


def ended_already(state: JobState) -> bool:
    """Whether nothing is left to do, with a line that says why.

    That is so when this very start has ended (torchrun restarts workers whatever their reason to go), and
    when a run started by hand is done. A start by hand after `stopped` or `failed` goes on.
    """
    before = state.read()
    ended_in = before.get("state")
    same_start = run_id() != "" and before.get("run_id") == run_id()
    if ended_in in ENDED and (same_start or (ended_in == "done" and "MINOS_RUN_ID" not in os.environ)):
        done = f"{ended_in} at step {before.get('step', 0)}/{before.get('steps', '?')}"
        print(f"nothing to do: {state.file} says {done}; another --job-dir trains anew", flush=True)
        return True
    return False


@contextlib.contextmanager
def failures_recorded(state: JobState) -> Iterator[None]:
    """Write down why the job failed before this process goes.

    Not recorded: a lost peer, since a restart mends that and the peer itself tells the reason if it can.
    """
    try:
        yield
    except Exception as error:
        rank = getattr(error, "rank", int(os.environ.get("RANK", "0")))
        node = getattr(error, "node", node_name())
        if is_peer_failure(error):
            here = f"rank {os.environ.get('RANK', '0')} ({node_name()})"
            print(f"{here}: another rank is gone or late, this one goes too", file=sys.stderr, flush=True)
            raise
        ours = isinstance(error, OUR_ERRORS)
        reason = str(error) if ours or isinstance(error, NonFiniteError) else f"{type(error).__name__}: {error}"
        try:
            state.fail(reason, node, rank, run_id())
        except (OSError, StateError) as problem:
            print(f"the failure cannot be recorded: {problem}", file=sys.stderr, flush=True)
        if not ours:
            raise
        print(f"rank {rank} ({node}): {' '.join(reason.split())}", file=sys.stderr, flush=True)
        sys.exit(2)
