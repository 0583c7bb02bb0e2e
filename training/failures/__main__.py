"""Look why a job's unit has ended on this node, and write it into the job's state file if that was a failure.

    python -m training.failures JOB_DIR --node NAME --unit UNIT [--run-id ID]

Run by minos-train-failed@.service after every end of the agent, as a user who may read the journal. What this node
found lies in JOB_DIR/failures/NAME.json, for the other nodes; the job's state gets the first failure of all of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from training import journals
from training.errors import UserError
from training.failures.first import CLOCKS, Failure, counts_since, first_failure, seconds
from training.failures.journal import Line, failure_in, lines_of
from training.files import write_atomically
from training.rendezvous import send_home
from training.state import JobState

LAST = 3000  # lines of the journal: some hundred starts that fail at once, or the last hours of one
PROPERTIES = ("ActiveState", "SubState", "ExecMainCode", "ExecMainStatus")  # 1 and 0: exited, with status 0
SETTLED = 20  # seconds that a unit may take from the end of its agent to its own


def said(*command: str) -> str:
    """What a command of the system answers; nothing where it cannot."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, errors="replace").stdout
    except (OSError, subprocess.TimeoutExpired) as problem:
        print(f"{command[0]}: {problem}", file=sys.stderr)
        return ""


def end_of(unit: str) -> str:
    """The state that the unit comes to: failed (given up), ended (its agent, by itself and well), inactive (stopped),
    activating or active (it is tried again).

    Between two tries nobody knows yet whether the start limit allows another; and systemd does not start this program a
    second time while it runs.
    """
    patience = time.monotonic() + SETTLED
    while True:
        answer = said("systemctl", "show", f"--property={','.join(PROPERTIES)}", unit)
        state = dict(line.split("=", 1) for line in answer.split() if "=" in line)
        between = state.get("ActiveState") == "deactivating" or state.get("SubState") == "auto-restart"
        if not between or time.monotonic() > patience:
            by_itself = [state.get(key) for key in PROPERTIES] == ["inactive", "dead", "1", "0"]
            return "ended" if by_itself else state.get("ActiveState", "")
        time.sleep(0.5)


def journal_of(unit: str, since: float) -> list[Line]:
    return read_journal(f"--since=@{since:.0f}", f"--unit={unit}", most=LAST)


def kernels_log(since: float) -> list[Line]:
    """What the kernel said of killed processes and broken GPUs; nothing where a container has no kernel of its own."""
    what = "oom-kill:|Out of memory|out of memory|segfault|NVRM: Xid"
    return read_journal("--dmesg", f"--since=@{since:.0f}", f"--grep={what}", most=100)


def read_journal(*arguments: str, most: int) -> list[Line]:
    try:
        return lines_of(journals.newest(*arguments, most=most))
    except OSError as problem:
        print(f"journalctl: {problem}", file=sys.stderr)
        return []


def records(folder: Path, run_id: str) -> Iterator[Failure]:
    """What the nodes of this start have found; half a file or somebody else's is none."""
    for file in sorted(folder.glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["run_id"] == run_id:
                yield Failure.from_record(record)
        except (OSError, ValueError, KeyError, TypeError) as problem:
            print(f"{file}: {problem!r}", file=sys.stderr)


def through(state: Mapping[str, object], node: str) -> bool:
    """Whether all ranks of this node have reached the end of an own script. Their agent waits five minutes for those of
    the others, and goes then: theirs may take longer, with a last evaluation for example.
    """
    ranks = {int(rank) for rank, its_node in state.get("workers", {}).items() if its_node == node}
    return bool(ranks) and ranks <= set(state.get("finished", []))


def look(job_dir: Path, node: str, unit: str, run_id: str) -> None:
    state, own = JobState(job_dir), job_dir / "failures" / f"{node}.json"
    end, now = end_of(unit), state.read()
    run_id = run_id or str(now.get("run_id", ""))
    if now.get("state") in ("done", "stopped") or now.get("run_id") != run_id:
        own.unlink(missing_ok=True)
        return
    began = seconds(now.get("started")) - CLOCKS
    found = failure_in(journal_of(unit, began), node, kernels_log(began), counts_since(now))
    if found:
        write_atomically(own, json.dumps(found.to_record(run_id)) + "\n")
    if end == "failed":  # systemd tries no more
        state.give_up(node, f"the unit {unit} gave up", run_id)
    if end == "ended" and not through(now, node):  # nor here, and the job knows nothing of an end
        state.give_up(node, f"the unit {unit} ended, and the job has not", run_id)
    now = state.read()
    first, written = first_failure(now, records(own.parent, run_id)), Failure.from_state(now)
    if first and written and first != written:
        again = written.cause and written.cause.name == "gave-up"
        state.explain(first.to_state() | ({"reason": f"{first.what} ({written.what})"} if again else {}), run_id)
    print(f"{unit}: {end}; {found.what if found else 'no failure of its own'}", flush=True)
    if state.read().get("state") == "failed":
        send_home()  # or nodes that wait for this one would be busy with a job that has ended


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.failures", description=__doc__.splitlines()[0])
    parser.add_argument("job_dir", type=Path)
    parser.add_argument("--node", required=True, help="the name under which the others know this machine")
    parser.add_argument("--unit", required=True)
    parser.add_argument("--run-id", default="", help="the start of the job; by default the one that its state names")
    options = parser.parse_args(arguments)
    try:
        look(options.job_dir, options.node, options.unit, options.run_id)
    except (UserError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
