"""What became of the job: one small JSON file that units and playbooks decide from; no torch.

torchrun turns every exit code of a worker into 1, so the outcome cannot travel that way. `JOB_DIR/state.json`
holds

    job, state (starting | running | done | stopped | failed), step, steps, epoch, loss, heldout_first,
    heldout_last, tokens_per_s, world_size, nodes, backend, run_id, config_sha256, checkpoint, plot, sample,
    reason, failed_rank, failed_node, last_lines, alarm, started, updated, train_seconds, mean_step_seconds

and is replaced as a whole, so a reader never sees half of it. What is not known yet is absent.

    python -m training.state may-run JOB_DIR     exit 0: work is left; 1: it has ended; 2: no usable file
    python -m training.state show JOB_DIR        print the file
    python -m training.state set JOB_DIR --state starting --run-id X [--job NAME] [--reason TEXT]
    python -m training.state fail JOB_DIR --reason TEXT --node NAME [--rank N]   unless it has ended already
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from training.errors import UserError
from training.files import write_atomically

STATES = ("starting", "running", "done", "stopped", "failed")
ENDED = ("done", "stopped", "failed")
OF_THE_LAST_END = ("reason", "failed_rank", "failed_node", "last_lines", "alarm")


class StateError(UserError):
    """The state file is there but cannot be understood; the message says which and what to do."""


class JobState:
    """The state file of one job directory; any process of the job may hold one."""

    def __init__(self, job_dir: Path):
        self.file = Path(job_dir) / "state.json"

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

    def begin(self, **fields: object) -> None:
        """Say that work starts or goes on: forgets why the job ended before."""
        with self._locked():
            content = {key: value for key, value in self.read().items() if key not in OF_THE_LAST_END}
            self._write(content | fields)

    def progress(self, **fields: object) -> bool:
        """Lay `fields` over the file unless the job has ended meanwhile (another rank may have recorded a
        failure).

        Returns whether it was written.
        """
        with self._locked():
            content = self.read()
            if content.get("state") in ENDED:
                return False
            self._write(content | fields)
            return True

    def fail(
        self,
        reason: str,
        node: str,
        rank: int | None = None,
        run_id: str = "",
        last_lines: Sequence[str] = (),
        began: datetime.datetime | None = None,
    ) -> bool:
        """Record a failure, with the last lines that the rank said; the first one wins. Returns whether this was it.

        How an earlier start ended does not count: one with another `run_id`, or, where starts have none, that ended
        before this process `began`.
        """
        fields = {"failed_rank": rank, "run_id": run_id or None, "failed_node": node, "reason": reason}
        fields["last_lines"] = list(last_lines) or None
        with self._locked():
            content = self.read()
            earlier = content.get("run_id") != run_id if run_id else bool(began) and _ended_before(content, began)
            if content.get("state") in ENDED and not earlier:
                return False
            content = {key: value for key, value in content.items() if key not in OF_THE_LAST_END}
            known = {key: value for key, value in fields.items() if value is not None}
            self._write(content | known | {"state": "failed"})
            return True

    def _write(self, content: dict[str, object]) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        content = {"started": now} | content | {"updated": now}
        write_atomically(self.file, json.dumps(content, indent=2, sort_keys=True) + "\n")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, also between nodes (NFSv4 carries these locks)."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.with_name(".state.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _ended_before(content: Mapping[str, object], moment: datetime.datetime) -> bool:
    try:
        return datetime.datetime.fromisoformat(str(content["updated"])) < moment
    except (KeyError, ValueError, TypeError):  # somebody else's words, or a time without its zone
        return False


def _may_run(state: JobState) -> int:
    content = state.read()
    if not content:
        print(f"{state.file}: no such file; the job was never started")
        return 2
    if content["state"] not in ENDED:
        return 0
    reason = f" ({content['reason']})" if content.get("reason") else ""
    print(f"job {content.get('job', state.file.parent.name)} is {content['state']}{reason}: nothing to run")
    return 1


def _set(state: JobState, options: argparse.Namespace) -> int:
    fields = {
        key: value for key in ("state", "run_id", "job", "reason") if (value := getattr(options, key)) is not None
    }
    if options.state == "starting":
        fields["started"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    state.begin(**fields)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.state", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("may-run", "show", "set", "fail"):
        verbs.add_parser(verb).add_argument("job_dir", type=Path)
    for option in ("--run-id", "--job", "--reason"):
        verbs.choices["set"].add_argument(option)
    verbs.choices["set"].add_argument("--state", choices=STATES, required=True)
    for option in ("--reason", "--node"):
        verbs.choices["fail"].add_argument(option, required=True)
    verbs.choices["fail"].add_argument("--rank", type=int)
    options = parser.parse_args(arguments)
    state = JobState(options.job_dir)
    try:
        if options.verb == "may-run":
            return _may_run(state)
        if options.verb == "set":
            return _set(state, options)
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
