"""What became of the job: one small JSON file that units and playbooks decide from; no torch.

torchrun turns every exit code of a worker into 1, so the outcome cannot travel that way. `JOB_DIR/state.json`
holds

    job, state (starting | running | done | stopped | failed), step, steps, epoch, loss, heldout_first,
    heldout_last, tokens_per_s, world_size, nodes, backend, run_id, config_sha256, checkpoint, plot, sample,
    reason, failed_rank, failed_node, failed_at, last_lines, cause, advice (see failures/), alarm,
    started, updated, stepped (when it made its last step), train_seconds, mean_step_seconds,
    log_every (steps between two words of it),
    planned_nodes (those it was started on; `nodes` are those that train, by rank), furthest_step,
    nnodes_min, given_up (nodes that will not try again), without (those of planned_nodes that this start
    leaves out, as they were off), came_back (nodes that have tried again since the workers started last),
    starts (of its workers, since it was started), starts_without_step (in a row, up to now),
    resumed_at (the step from which the newest of them goes on);
    of somebody's own script (see script.py) also script, attempt, attempt_began, lasting_began (of
    the newest attempt before that one that lasted), workers, finished

and is replaced as a whole, so a reader never sees half of it. What is not known yet is absent.

    python -m training.state show JOB_DIR        print the file
    python -m training.state claim JOB_DIR --run-id X --job NAME --nodes a,b [--instead-of Y]
                                                 a new start, unless somebody else's came first; exit 1 then
    python -m training.state set JOB_DIR --state failed --run-id X [--job NAME] [--reason TEXT]
    python -m training.state give-up JOB_DIR --node NAME --reason TEXT   fails the job if too few nodes are left
    python -m training.state fail JOB_DIR --reason TEXT --node NAME [--rank N]   unless it has ended already
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from training.errors import UserError
from training.failures.first import FIELDS, with_cause
from training.files import write_atomically

STATES = ("starting", "running", "done", "stopped", "failed")
ENDED = ("done", "stopped", "failed")
OF_THE_LAST_START = (
    "given_up", "without", "came_back", "starts", "starts_without_step", "tried_from_step", "furthest_step", "nodes",
    "world_size", "attempt", "workers", "finished",
)  # fmt: skip
THREADS = threading.Lock()
RECORD_SECONDS = 30.0  # that the share has to take down why a job failed: what waits longer holds the others, too
CLAIM_SECONDS = 60  # that a start takes from its first word to its workers', at most; then another may take its place
CHANGED = (
    "than this job was started with: another train.yml has changed them meanwhile; type the one again whose settings "
    "you want, another one with -e job=NAME"
)
OF_THE_LAST_END = (*FIELDS, "alarm")


class StateError(UserError):
    """The state file is there but cannot be understood; the message says which and what to do."""


class SupersededError(Exception):
    """The file is that of a later start, or of this one's end: this process has nothing to do for the job any more."""


class JobState:
    """The state file of one job directory; any process of the job may hold one.

    A process that Minos started (MINOS_RUN_ID) belongs to the start that was claimed under this id. Where the file
    names another one, a node was forgotten that has been away: nothing that it does may reach the job any more.
    """

    def __init__(self, job_dir: Path):
        self.file, self._claimed = Path(job_dir) / "state.json", os.environ.get("MINOS_RUN_ID", "")

    def read(self) -> dict[str, object]:
        """Its content, {} if there is none. Errors: StateError on anything that we did not write."""
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (ValueError, UnicodeDecodeError) as error:
            raise StateError(f"{self.file}: not valid JSON ({error}); delete it and start the job again") from None
        if not isinstance(content, dict) or content.get("state") not in STATES:
            raise StateError(f"{self.file}: state must be one of {', '.join(STATES)}; delete it and start again")
        return content

    def superseded(self, content: Mapping[str, object]) -> bool:
        """Whether the file, with this content, is that of another start than this process belongs to."""
        return bool(self._claimed) and content.get("run_id", self._claimed) != self._claimed

    def begin(self, **fields: object) -> None:
        """Say that work starts or goes on: forgets why the job ended before.

        Errors: SupersededError, where a start that was claimed is no more, or was ended while it came this far.
        """
        with self._locked():
            content = self.read()
            if self.superseded(content) or (self._claimed and content.get("state") in ENDED):
                whose = f"{content['state']}, start {content.get('run_id')}"
                raise SupersededError(f"job {content.get('job')} is {whose}: nothing to do here for {self._claimed}")
            content = {key: value for key, value in content.items() if key not in (*OF_THE_LAST_END, "came_back")}
            self._write(content | fields)

    def claim(
        self,
        run_id: str,
        instead_of: str,
        job: str,
        nodes: Sequence[str],
        nnodes_min: int,
        config_sha256: str = "",
        wait: Callable[[float], None] = time.sleep,
        without: Sequence[str] = (),
    ) -> str:
        """Begin a new start, of two at once only one: `instead_of` is the run id that was seen here, and did not run.
        `without`: those of the nodes that are off, and are no part of it until train.yml takes them in.

        A start that is under way is waited for, until it has workers or takes too long. Returns why not, or nothing.
        """
        meanwhile = f"job {job} was started by somebody else meanwhile; the same command follows it"
        waited = False
        while True:
            with self._locked():
                content = self.read()
                other = content.get("run_id") or ""
                age = _age(content)
                if other not in (instead_of, run_id) or (waited and content.get("state") != "starting"):
                    return meanwhile
                if content.get("state") != "starting" or other == run_id or age is None or abs(age) > CLAIM_SECONDS:
                    content = {key: value for key, value in content.items() if key not in OF_THE_LAST_START}
                    content = {key: value for key, value in content.items() if key not in OF_THE_LAST_END}
                    now = _now()
                    fields = {"state": "starting", "run_id": run_id, "job": job, "planned_nodes": list(nodes)}
                    fields |= {"config_sha256": config_sha256} if config_sha256 else {}
                    fields |= {"without": list(without)} if without else {}
                    self._write(content | fields | {"nnodes_min": nnodes_min, "started": now})
                    return ""
            wait(2)
            waited = True

    def give_up(self, node: str, reason: str, run_id: str = "") -> bool:
        """Note that `node` will not try again; the job has failed when too few are left. Returns whether it has.

        `run_id`: the start that it has given up; a later one begins anew.
        """
        with self._locked():
            content = self.read()
            if run_id and content.get("run_id") != run_id:
                return False
            given_up = sorted({*content.get("given_up", []), node})
            left = len({*content.get("planned_nodes", [])} - {*given_up, *content.get("without", [])})
            if content and content["state"] not in ENDED:
                failed = {"state": "failed", "failed_node": node, "reason": reason}
                # Where all that are there have given up, those that are left are off.
                trained, came = {*content.get("nodes", [])}, {*content.get("came_back", [])}
                lost = left < content.get("nnodes_min", 1) or (trained and trained | came <= {*given_up})
                self._write(content | {"given_up": given_up} | (failed if lost else {}))
                return bool(lost)
            return False

    def count_start(self) -> int:
        """Count a start of the workers. Returns how many there were in a row that came no further than one before."""
        with self._locked():
            content = self.read()
            furthest = content.get("furthest_step", 0)
            alike = content.get("tried_from_step") == furthest
            tries = content.get("starts_without_step", 0) + 1 if alike else 1
            counts = {"starts": content.get("starts", 0) + 1, "starts_without_step": tries, "tried_from_step": furthest}
            if content and content["state"] not in ENDED and not self.superseded(content):
                self._write(content | counts)
            return tries

    def progress(self, **fields: object) -> bool:
        """Lay `fields` over the file unless the job has ended meanwhile (another rank may have recorded a
        failure).

        Returns whether it was written.
        """
        with self._locked():
            content = self.read()
            if content.get("state") in ENDED or self.superseded(content):
                return False
            if fields.get("step", 0) > content.get("step", 0):
                fields["stepped"] = _now()
            self._write(content | fields)
            return True

    def explain(self, failure: Mapping[str, object], run_id: str) -> None:
        """Say better why this start of the job has failed: `failure` has the fields of Failure.to_state()."""
        with self._locked():
            content = self.read()
            if content.get("state") == "failed" and content.get("run_id", "") == run_id:
                self._write({key: value for key, value in content.items() if key not in FIELDS} | failure)

    def change(self, how: Callable[[dict[str, object]], dict[str, object] | None]) -> dict[str, object]:
        """Read, change and write as one: `how` maps the content to the new one, or to None to leave it. Returns what
        the file holds then.
        """
        with self._locked():
            content = self.read()
            new = how(content)
            if new is not None:
                self._write(new)
            return content if new is None else new

    def fail(
        self,
        reason: str,
        node: str,
        rank: int | None = None,
        run_id: str = "",
        last_lines: Sequence[str] = (),
        began: datetime.datetime | None = None,
        claimed: bool = False,
    ) -> bool:
        """Record a failure, with the last lines that the rank said; the first one wins. Returns whether this was it.

        How an earlier start ended does not count: one with another `run_id`, or, where starts have none, that ended
        before this process `began`. Where the start was `claimed` before its workers were there, another id in the
        file is that of a later start, which does not pay for this one.
        """
        fields = {"failed_rank": rank, "run_id": run_id or None, "failed_node": node, "reason": reason}
        fields["last_lines"] = list(last_lines) or None
        with self._locked():
            content = self.read()
            earlier = content.get("run_id") != run_id if run_id else bool(began) and _ended_before(content, began)
            if claimed and content.get("run_id", run_id) != run_id:
                return False
            if content.get("state") in ENDED and not earlier:
                return False
            content = {key: value for key, value in content.items() if key not in OF_THE_LAST_END}
            known = {key: value for key, value in fields.items() if value is not None}
            self._write(content | known | {"state": "failed"})
            return True

    def _write(self, content: dict[str, object]) -> None:
        now = _now()
        content = with_cause({"started": now} | content | {"updated": now})
        if content.get("step"):
            content["furthest_step"] = max(content["step"], content.get("furthest_step", 0))
        write_atomically(self.file, json.dumps(content, indent=2, sort_keys=True) + "\n")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, also between nodes (NFSv4 carries these locks)."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with THREADS, self.file.with_name(".state.lock").open("a") as lock:
            # POSIX's lock, not flock: an NFS server gives its clients' locks of both kinds to its kernel as POSIX ones,
            # which a flock on the server itself would not see. It ends with the file, and is the whole process's.
            fcntl.lockf(lock, fcntl.LOCK_EX)
            yield


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _ended_before(content: Mapping[str, object], moment: datetime.datetime) -> bool:
    try:
        return datetime.datetime.fromisoformat(str(content["updated"])) < moment
    except (KeyError, ValueError, TypeError):  # somebody else's words, or a time without its zone
        return False


def _age(content: Mapping[str, object]) -> float | None:
    """Seconds since the last change; None where that cannot be told."""
    try:
        updated = datetime.datetime.fromisoformat(str(content["updated"]))
        return (datetime.datetime.now(datetime.UTC) - updated).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None


def _set(state: JobState, options: argparse.Namespace) -> int:
    fields = {
        key: value for key in ("state", "run_id", "job", "reason") if (value := getattr(options, key)) is not None
    }
    if options.instead_of is not None and state.read().get("run_id", "") not in (options.instead_of, options.run_id):
        print("not recorded: the job was started by somebody else meanwhile")
        return 0
    state.begin(**fields)
    return 0


def _claim(state: JobState, options: argparse.Namespace) -> int:
    fields = {key: getattr(options, key) for key in ("run_id", "instead_of", "job", "nnodes_min", "config_sha256")}
    refused = state.claim(nodes=options.nodes.split(","), **fields)
    print(refused or "claimed")
    return 1 if refused else 0


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.state", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("show", "claim", "set", "give-up", "fail"):
        verbs.add_parser(verb).add_argument("job_dir", type=Path)
    for option in ("--run-id", "--job", "--reason"):
        verbs.choices["set"].add_argument(option)
    verbs.choices["set"].add_argument("--state", choices=STATES, required=True)
    for option in ("--run-id", "--job", "--nodes"):
        verbs.choices["claim"].add_argument(option, required=True)
    verbs.choices["claim"].add_argument("--nnodes-min", type=int, default=1)
    verbs.choices["claim"].add_argument("--instead-of", default="")
    verbs.choices["claim"].add_argument("--config-sha256", default="")
    verbs.choices["set"].add_argument(
        "--instead-of", help="the run id that was seen; nothing is set if another is there"
    )
    for option in ("--reason", "--node"):
        verbs.choices["fail"].add_argument(option, required=True)
        verbs.choices["give-up"].add_argument(option, required=True)
    verbs.choices["fail"].add_argument("--rank", type=int)
    options = parser.parse_args(arguments)
    state = JobState(options.job_dir)
    try:
        if options.verb == "claim":
            return _claim(state, options)
        if options.verb == "set":
            return _set(state, options)
        if options.verb == "give-up":
            print("the job has failed" if state.give_up(options.node, options.reason) else "noted; the others go on")
            return 0
        if options.verb == "fail":
            written = state.fail(options.reason, options.node, options.rank)
            print("recorded" if written else f"not recorded: the job is {state.read()['state']} already")
            return 0
        content = state.read()
        if not content:
            raise StateError(f"{state.file}: no such file; the job was never started")
        print(json.dumps(content, indent=2, sort_keys=True))
        return 0
    except (StateError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
