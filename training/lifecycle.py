"""How a run starts, is asked to stop, and fails: the link between the training loop and the job's state
file.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from training import config as configuration
from training import distributed
from training.config import Config
from training.distributed import CardLostError, Place, is_card_failure, is_peer_failure, node_name
from training.errors import UserError
from training.failures.first import LINES
from training.files import wait_for_room, within
from training.folders import Folders
from training.meeting import unattended
from training.rendezvous import GONE, leave_failed, send_home
from training.state import CHANGED, ENDED, RECORD_SECONDS, JobState, StateError, SupersededError

STOP_FILE = "stop-requested"


class NonFiniteError(RuntimeError):
    """A loss or gradient that is not a number, raised on all ranks; the optimizer has not applied it."""

    def __init__(self, what: str, step: int, rank: int, node: str, rows: list[int] | None = None):
        where = f" in rows {rows} of the packed data" if rows else ""
        super().__init__(
            f"{what} is not finite at step {step} on rank {rank} ({node}){where}; lower lr or look at the data"
        )
        self.rank, self.node = rank, node


class Signal:
    """Whether this process was asked to leave, by SIGTERM or Ctrl-C."""

    def __init__(self) -> None:
        self.received = False

    def listen(self) -> None:
        """From now on such a signal waits for the end of the step; before, there is nothing to save."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, *_: object) -> None:
        self.received = True


def seconds_to_leave(since: float) -> float:
    """How long a start that was told to leave may still wait for its checkpoint to arrive, in seconds.

    `since`: when its last step was over (time.monotonic). A minute at least: whoever runs it by hand waits for it.
    Under Minos what torchrun gives its workers, less the step in which they heard of it.
    """
    given = float(os.environ.get("MINOS_STOP_SECONDS", "0"))
    return max(60.0, given - 30 - (time.monotonic() - since))


def stop_recorded(job_dir: Path) -> bool:
    """Whether the stop of the whole job is recorded. The directory is listed because an NFS client answers a
    single missing name from its cache for half a minute.
    """
    return any(path.name == STOP_FILE for path in job_dir.iterdir())


def run_recipe(module: str, purpose: str, recipe: Callable[[Config, Folders], str]) -> int:
    """The command line of `python -m module`: run `recipe` and record how it ended; returns what to `leave` with.

    The recipe returns `done`, `stopped` (the job shall end) or `leaving` (only this start ends).
    """
    options = _parse_arguments(module, purpose)
    folders = Folders(job=options.job_dir, local=options.local_dir, prepared=options.prepared)
    state, outcome = JobState(folders.job), ""
    with failures_recorded(state):
        if not ended_already(state, None):
            wait_for_room(folders.job)
            config = configuration.load(options.config, options.overrides)
            if not ended_already(state, config):
                require_progress(state)
                outcome = recipe(config, folders)
                distributed.end()
    return GONE if outcome == "leaving" else 0  # GONE after a signal: saved, not finished


def leave(status: int) -> NoReturn:
    """End the process as it is, without taking Python apart.

    DDP keeps the process group beyond its end, and with it gloo's threads. One that still lets go of the tensor of the
    last collective needs Python's lock for that, and where Python is over by then the process ends with SIGABRT
    (https://github.com/pytorch/pytorch/issues/190489): torchrun would start all workers again for nothing.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _parse_arguments(module: str, purpose: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=purpose)
    parser.add_argument("--config", required=True, type=Path, help="YAML file, see training/configs")
    parser.add_argument("--job-dir", type=Path, help="all that one looks at; default runs/<config's name>")
    parser.add_argument("--local-dir", type=Path, help="this node's own disk, where --job-dir is shared")
    parser.add_argument("--prepared", type=Path, help="where `python -m training.prepare` has put data and model")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the file")
    options = parser.parse_intermixed_args()
    options.job_dir = (options.job_dir or Path("runs") / options.config.stem).resolve()
    options.local_dir = options.local_dir and options.local_dir.resolve()
    options.prepared = options.prepared and options.prepared.resolve()
    return options


def begun(job_dir: Path, config: Config, place: Place) -> dict[str, object]:
    """What the state file says of a start, whatever the recipe."""
    return {
        "job": job_dir.name,
        "state": "running",
        "run_id": run_id(),
        "config_sha256": config.sha256(),
        "world_size": place.world_size,
        "nodes": list(dict.fromkeys(place.nodes)),
        "backend": place.backend,
        "log_every": config.log_every,
    }


def run_id() -> str:
    """Which start of the job this is: Minos's id, by hand torchrun's or that of the only process."""
    by_hand = os.environ.get("TORCHELASTIC_RUN_ID", f"process-{os.getpid()}")
    # torchrun says "none" when it was given no id: then starts cannot be told apart.
    return os.environ.get("MINOS_RUN_ID") or ("" if by_hand == "none" else by_hand)


def process_began() -> datetime.datetime:
    """When this process was started: its birth, in ticks after the machine's."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)


def ended_already(state: JobState, config: Config | None) -> bool:
    """Whether nothing is left to do, with a line that says why.

    That is so when this very start has ended (torchrun restarts workers whatever their reason to go: this is asked
    before there is a config, which may be that reason), and when a run started by hand is done with this config. A
    start by hand after `stopped` or `failed` goes on, and so does one with more steps or epochs than before.
    """
    before, by_hand = state.read(), "MINOS_RUN_ID" not in os.environ
    if state.superseded(before):
        print(f"nothing to do: {state.file} is of {before['run_id']}, a later start than {run_id()}", flush=True)
        return True
    ended_in = before.get("state")
    # By hand an id may be given that is the same each time; only a restarted worker belongs to the start that ended.
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    same_start = run_id() != "" and before.get("run_id") == run_id() and (restarted or not by_hand)
    same_end = ended_in == "done" and by_hand and config and before.get("config_sha256") == config.sha256()
    if ended_in in ENDED and (same_start or same_end):
        done = f"{ended_in} at step {before.get('step', 0)}/{before.get('steps', '?')}"
        print(f"nothing to do: {state.file} says {done}; another --job-dir trains anew", flush=True)
        if ended_in == "failed":
            leave_failed(int(os.environ.get("RANK", "0")), node_name())
        return True
    return False


def require_claimed(state: JobState, config: Config, prepared_for: str = "") -> None:
    """Asked by rank 0 once all have the same config and data; `prepared_for`: the digest of the config of the latter.

    Errors: UserError where it is not the one that Minos claimed this start with: of two train.yml at once, the one that
    was refused had written its settings, or prepared its data, before.
    """
    content = state.read()
    claimed = content.get("config_sha256", "") if content.get("run_id") == os.environ.get("MINOS_RUN_ID") else ""
    if claimed not in ("", config.sha256()):
        raise UserError(f"the nodes have other settings {CHANGED}")
    if claimed and prepared_for not in ("", claimed):
        raise UserError(f"the data were prepared for other settings {CHANGED}")


def require_progress(state: JobState) -> None:
    """Under Minos: count this start. Errors: UserError when so many in a row came no further that more will not."""
    limit = int(os.environ.get("MINOS_MAX_RESTARTS", "0"))
    if "MINOS_RUN_ID" in os.environ and os.environ.get("RANK") == "0" and limit:
        tries = state.count_start()
        if tries > limit + 1:
            furthest = state.read().get("furthest_step", 0)
            raise UserError(
                f"the workers were started {tries} times and came no further than step {furthest}; "
                "what ended them stands in the logs of the nodes"
            )


def leave_for_a_card(error: Exception) -> None:
    """Say what becomes of a start whose GPU has failed: the workers begin again from the newest checkpoint. Where the
    card is gone the agent goes, too; this node's unit tries again, and the others go on without it meanwhile.
    """
    here = f"rank {os.environ.get('RANK', '0')} ({node_name()})"
    lost = isinstance(error, CardLostError)
    what = "this node leaves" if lost else "the GPU reported a fault, the workers are started again"
    print(f"{here}: {error}: {what}", file=sys.stderr, flush=True)
    if lost:
        os.kill(os.getppid(), signal.SIGTERM)


@contextlib.contextmanager
def failures_recorded(state: JobState) -> Iterator[None]:
    """Write down why the job failed before this process goes.

    Not recorded: a lost peer, since a restart mends that and the peer itself tells the reason if it can; nor a card
    that reports a fault, as another start may find it well, and the others need not end for it.
    """
    try:
        yield
    except SupersededError as error:
        print(error, flush=True)
        sys.exit(1)  # so that torchrun starts all of them anew, who look then, and leave
    except Exception as error:
        unattended()  # what comes now shall not be cut short
        rank = getattr(error, "rank", int(os.environ.get("RANK", "0")))
        node = getattr(error, "node", node_name())
        if is_peer_failure(error):
            here = f"rank {os.environ.get('RANK', '0')} ({node_name()})"
            print(f"{here}: another rank is gone or late, this one goes too", file=sys.stderr, flush=True)
            raise
        if "MINOS_RUN_ID" in os.environ and (isinstance(error, CardLostError) or is_card_failure(error)):
            leave_for_a_card(error)
            raise
        ours, details = isinstance(error, UserError), getattr(error, "details", [])
        reason = str(error) if ours or isinstance(error, NonFiniteError) else f"{type(error).__name__}: {error}"
        try:
            lines = details if ours else traceback.format_exc().strip().splitlines()[-LINES:]
            claimed, began = "MINOS_RUN_ID" in os.environ, process_began()

            def failed() -> bool:
                state.fail(reason, node, rank, run_id(), lines, began, claimed=claimed)
                return state.read().get("state") == "failed"

            # A share that hangs must hold neither the others, who wait for this rank, nor the word of what was wrong.
            if within(RECORD_SECONDS, failed):
                send_home()  # also where another rank was first, whom this one's end may end before it has told them
        except (OSError, StateError) as problem:
            print(f"the failure cannot be recorded: {problem}", file=sys.stderr, flush=True)
        if not ours:
            raise
        line = f"rank {rank} ({node}): {' '.join(reason.split())}"
        print("\n".join([line, *details]), file=sys.stderr, flush=True)
        sys.exit(2)
