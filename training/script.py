"""Run somebody's own script as a worker of a job, unchanged: torchrun starts this, and this starts the script.

    python -m torch.distributed.run ... -m training.script --config JOB.yaml --job-dir DIR [--local-dir DIR]

The config names the script, by a path that begins where the config is, and its arguments. The script runs as it would
right behind torchrun: as `__main__`, with its own arguments, its own folder first on the search path;
docs/own-scripts.md says what else it finds. It knows nothing of the job's state file, so that is kept here: running
when the workers start, done when the last rank has reached the end, failed with the first exception that is the
script's own.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import os
import re
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import yaml

from training.failures.first import LASTED, LINES
from training.files import wait_for_room, within
from training.rendezvous import leave_failed, send_home
from training.state import CHANGED, ENDED, OF_THE_LAST_END, RECORD_SECONDS, JobState, StateError

PAUSE = 2.0  # seconds between two looks at the state
LINGER = 2 * 3600.0
"""Seconds that a rank that is through waits for the others: one that left by os._exit never comes."""


@dataclasses.dataclass(kw_only=True, frozen=True)
class Worker:
    """This process in the start that it belongs to."""

    run_id: str
    attempt: str
    """The same for all workers that were started together, and for no others: where they meet, a port of chance."""
    rank: int
    world_size: int
    node: str
    limit: int
    """How many starts in a row may come no further; 0 is any number."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Worker:
        """From what torchrun sets. Without torchrun it is the only process, and each start a new run."""
        alone = f"process-{os.getpid()}"
        meeting = f"{environment.get('MASTER_ADDR', alone)}:{environment.get('MASTER_PORT', '')}"
        # By hand the launcher's own store may serve all starts, at one port; then there is one launcher, which counts.
        if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            meeting += f"#{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        run_id = environment.get("MINOS_RUN_ID") or environment.get("TORCHELASTIC_RUN_ID", alone)
        restarts = int(environment.get("MINOS_MAX_RESTARTS", "0"))
        return cls(
            run_id=run_id,
            attempt=f"{run_id} {meeting}",
            limit=restarts + 1 if restarts else 0,
            rank=int(environment.get("RANK", "0")),
            world_size=int(environment.get("WORLD_SIZE", "1")),
            node=environment.get("MINOS_NODE") or os.uname().nodename,
        )


def joined(content: dict, worker: Worker, facts: Mapping[str, object], now: datetime.datetime) -> dict | None:
    """The state once `worker` has started; None where nothing is left to do for this run.

    The first worker of an attempt begins it anew, the others add themselves; with the last one it is known who runs.
    """
    if content.get("state") in ENDED and content.get("run_id") == worker.run_id:
        return None
    if content.get("attempt") != worker.attempt:
        began = content.get("attempt_began")
        lasted = (now - _moment(began, now)).total_seconds() >= LASTED
        tries = 1 if lasted else int(content.get("starts_without_step", 0)) + 1
        content = content | ({"lasting_began": began} if lasted else {})
        content = {key: value for key, value in content.items() if key not in OF_THE_LAST_END}
        content |= {"attempt": worker.attempt, "attempt_began": now.isoformat(timespec="seconds")}
        content |= {"workers": {}, "finished": [], "run_id": worker.run_id}
        content |= {"state": "running" if content.get("state") == "running" else "starting"}
        content |= {"starts": int(content.get("starts", 0)) + 1, "starts_without_step": tries}
    content = content | facts | {"workers": content["workers"] | {str(worker.rank): worker.node}}
    if len(content["workers"]) < worker.world_size:
        return content
    nodes = dict.fromkeys(content["workers"][rank] for rank in sorted(content["workers"], key=int))
    return content | {"state": "running", "nodes": list(nodes), "world_size": worker.world_size, "came_back": []}


def reached_the_end(content: dict, worker: Worker) -> dict | None:
    """The state once `worker` is through; the last one makes the job done. None where another attempt has begun."""
    if content.get("state") in ENDED or content.get("attempt") != worker.attempt:
        return None
    finished = sorted({*content["finished"], worker.rank})
    return content | {"finished": finished} | ({"state": "done"} if len(finished) == worker.world_size else {})


def _fail(state: JobState, worker: Worker, reason: str, lines: list[str]) -> bool:
    """Record why the job has failed, unless a later attempt is under way, which would pay for an earlier one. Returns
    whether the job has failed.
    """
    failed = False

    def record() -> bool:
        if state.read().get("attempt") != worker.attempt:
            return False
        state.fail(reason, worker.node, worker.rank, worker.run_id, lines)
        return state.read().get("state") == "failed"

    try:
        failed = within(RECORD_SECONDS, record)  # the word of what was wrong comes after it
    except (OSError, StateError) as problem:
        print(f"the failure cannot be recorded: {problem}", file=sys.stderr, flush=True)
    if failed:
        send_home()  # also where another rank was first, whom this one's end may end before it has told them
    return failed


def _moment(text: object, otherwise: datetime.datetime) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return otherwise


def watched_signals() -> Callable[[], bool]:
    """Return what tells whether this process was asked to end, whatever the script makes of such a signal.

    The interpreter notes each signal that has a handler in Python; one that has none ends the process anyway.
    """
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    # A process that the script forks has its own end: loaders of data are told to go as a matter of course.
    os.register_at_fork(after_in_child=_watch_no_more)
    noted = set()

    def asked() -> bool:
        with contextlib.suppress(BlockingIOError):
            noted.update(os.read(read, 1 << 16))
        return bool(noted & {signal.SIGTERM, signal.SIGINT})

    return asked


def _watch_no_more() -> None:
    with contextlib.suppress(ValueError):  # forked by a thread, whose child gets no signals
        signal.set_wakeup_fd(-1)


@contextlib.contextmanager
def only_the_script(script: Path) -> Iterator[None]:
    """Within, modules are found as if the script had been started itself: it may have a `training` of its own."""
    ours = _take_out()
    before, sys.path = sys.path, [str(script.parent), *sys.path[1:]]
    try:
        yield
    finally:
        sys.path = before
        _take_out()
        sys.modules.update(ours)


def _take_out() -> dict[str, object]:
    names = [name for name in sys.modules if name.partition(".")[0] == "training"]
    return {name: sys.modules.pop(name) for name in names}


def own_lines(error: BaseException, script: Path) -> list[str]:
    """The last lines of the traceback, without the frames that led to the script."""
    frame = error.__traceback__
    while frame and frame.tb_frame.f_code.co_filename != str(script):
        frame = frame.tb_next
    lines = traceback.format_exception(type(error), error, frame or error.__traceback__)
    return "".join(lines).strip().splitlines()[-LINES:]


def lost_a_peer(error: BaseException | None) -> bool:
    """Whether the error, or what it came from, only says that another rank is gone: a restart mends that."""
    if "torch" not in sys.modules:
        return False
    from training.distributed import is_peer_failure  # loads torch, which a script may want to set up before

    return any(map(is_peer_failure, origins(error)))


def card_failed(error: BaseException) -> bool:
    """Whether the error, or what it came from, is a fault of the GPU: another start may find it well."""
    if "torch" not in sys.modules:
        return False
    from training.distributed import is_card_failure

    return any(map(is_card_failure, origins(error)))


def origins(error: BaseException | None) -> list[BaseException]:
    """The error, what it came from, and so on."""
    seen: list[BaseException] = []
    while error and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return seen


def filled(word: str) -> str:
    """An argument with the folders and names that only the node knows: $MINOS_LOCAL_DIR or ${MINOS_LOCAL_DIR}."""
    return re.sub(
        r"\$(?:(MINOS_\w+)|\{(MINOS_\w+)\})", lambda found: os.environ.get(found[1] or found[2], found[0]), word
    )


def record_the_end(state: JobState, worker: Worker) -> dict:
    """Note that `worker` is through; returns the state. What has come to its end shall not run again because the last
    file has filled the share, or because that does not answer now.
    """
    told = False
    while True:
        try:
            wait_for_room(state.file.parent)
            return state.change(lambda content: reached_the_end(content, worker))
        except OSError as problem:
            if not told:
                print(f"alarm: the end cannot be recorded ({problem}); trying on", file=sys.stderr, flush=True)
            told = True
            time.sleep(PAUSE)


def wait_for_the_others(content: dict, state: JobState, worker: Worker) -> None:
    """Stay until the last rank is through, or all are started again.

    Its agent would wait five minutes for those of the other nodes and then go. A node that boots then, or is started,
    would begin the whole script anew, beside a rank 0 that still evaluates what was trained.
    """
    for asked in (signal.SIGTERM, signal.SIGINT):  # nothing of the script is left to save
        signal.signal(asked, signal.SIG_DFL)
    deadline = time.monotonic() + LINGER
    while content.get("state") not in ENDED and content.get("attempt") == worker.attempt:
        if time.monotonic() > deadline:
            print(f"rank {worker.rank} ({worker.node}) goes: others have not come to their end yet", flush=True)
            return
        time.sleep(PAUSE)
        with contextlib.suppress(OSError, StateError):  # a share that is away comes back
            content = state.read() or content


def run(script: Path, arguments: list[str]) -> None:
    """Run the script as the main program; raises what it raises."""
    sys.argv = [str(script), *arguments]
    with only_the_script(script):
        runpy.run_path(str(script), run_name="__main__")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.script", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="names the script and its arguments")
    parser.add_argument("--job-dir", required=True, type=Path, help="the job's folder, which all nodes see")
    parser.add_argument("--local-dir", type=Path, help="the job's folder on this node's own disk")
    parser.add_argument("--prepared", type=Path, help=argparse.SUPPRESS)  # all jobs are given it
    options = parser.parse_args()
    settings = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    script = (options.config.parent / settings["script"]).resolve()
    name = script.name
    worker, state = Worker.of(os.environ), JobState(options.job_dir)

    digest = hashlib.sha256(options.config.read_bytes()).hexdigest()
    facts = {"job": options.job_dir.name, "script": name, "config_sha256": digest}
    if not (before := state.read()) or before.get("state") not in ENDED or before.get("run_id") != worker.run_id:
        wait_for_room(options.job_dir)
    now = datetime.datetime.now(datetime.UTC)
    after = state.change(lambda content: None if state.superseded(content) else joined(content, worker, facts, now))
    if state.superseded(after):
        print(f"nothing to do: {state.file} is of {after['run_id']}, a later start than {worker.run_id}", flush=True)
        return
    if after["state"] in ENDED:
        print(f"nothing to do: {state.file} says {after['state']} {after.get('reason', '')}".rstrip(), flush=True)
        if after["state"] == "failed":
            leave_failed(worker.rank, worker.node)
        return
    if before.get("run_id") == worker.run_id and before.get("config_sha256", digest) != digest:
        if _fail(state, worker, f"{worker.node} was given another script, or other arguments, {CHANGED}", []):
            leave_failed(worker.rank, worker.node)
        return
    if worker.limit and (tries := after["starts_without_step"]) > worker.limit:
        reason = f"{name} was started {tries} times in a row and no start lasted {LASTED} s; what ended them stands in "
        if _fail(state, worker, f"{reason}the logs of the nodes", []):
            leave_failed(worker.rank, worker.node)
        return

    folders = {"MINOS_SHARED_DIR": options.job_dir, "MINOS_LOCAL_DIR": options.local_dir or options.job_dir}
    for variable, folder in folders.items():
        (folder / "output").mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(folder / "output")
    os.environ.setdefault("NODE_RANK", os.environ.get("GROUP_RANK", "0"))  # torchrun sets the second name alone
    os.chdir(os.environ["MINOS_SHARED_DIR"])
    if packages := os.environ.get("MINOS_PACKAGES"):  # of this job alone; last, so that they hide nothing
        sys.path.append(packages)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), packages]))
    print(f"rank {worker.rank}/{worker.world_size} node={worker.node} script={name} pid={os.getpid()}", flush=True)

    asked = watched_signals()

    def failed(reason: str, lines: list[str]) -> None:
        if not asked() and os.getpid() == here:
            _fail(state, worker, f"{name}: {reason}", lines)

    here = os.getpid()
    try:
        run(script, [filled(word) for word in settings["arguments"]])
    except SystemExit as end:
        if end.code not in (None, 0):
            failed(f"ended with {f'status {end.code}' if isinstance(end.code, int) else end.code}", [])
            raise
    except Exception as error:
        if lost_a_peer(error):
            print(f"rank {worker.rank} ({worker.node}): another rank is gone, this one goes too", file=sys.stderr)
        elif card_failed(error):
            print(
                f"rank {worker.rank} ({worker.node}): the GPU reported a fault, all are started again", file=sys.stderr
            )
        else:
            failed(f"{type(error).__name__}: {error}", own_lines(error, script))
        raise
    if os.getpid() != here:
        return  # a process that the script has forked, and that did not end by itself
    if asked():
        print(f"rank {worker.rank} ({worker.node}): {name} left when it was told to; this is not its end", flush=True)
    else:
        wait_for_the_others(record_the_end(state, worker), state, worker)


if __name__ == "__main__":
    main()
