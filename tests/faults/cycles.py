"""Start, stop, resume and stop a job again and again: `python -m tests.faults.cycles`, or `make cycles`.

Prints what each verb took, and what the cycles have left behind on the nodes. It exits with 1 if that is anything, or
if the job did not go on each time from where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import sys
import time
from collections import defaultdict

from rich.console import Console
from rich.table import Table

from tests.faults import data
from tests.faults.cluster import JOBS, Cluster, own_lab
from tests.labs import Lab

JOB = "cycles"
STEPS = 100_000  # more than any of it makes
LOOK = """
ps -u minos -o args= | cut -c1-90 | sort | sed 's/^/process /'
systemctl list-units --all --plain --no-legend 'minos*' | awk '{print "unit", $1, $3, $4}'
systemctl list-units --all --failed --plain --no-legend | awk '{print "failed", $1}'
ss -Hltn | awk '{print "port", $4}' | sort
find /dev/shm /tmp /run -xdev -user minos -printf 'file %p\\n' 2>/dev/null | sort
if command -v nvidia-smi > /dev/null; then
    timeout 20 nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader | sed 's/^/gpu process /'
fi
echo looked
"""


def traces(cluster: Cluster) -> dict[str, set[str]]:
    """What could be left behind, by node: processes, units, ports, files in memory, memory of GPUs."""
    found = {node: set(text.splitlines()) for node, text in cluster.everywhere(LOOK).items()}
    for node, lines in found.items():
        if "looked" not in lines:
            raise RuntimeError(f"{node} cannot be looked at: {sorted(lines)}")
    return found


def left_behind(before: dict[str, set[str]], after: dict[str, set[str]]) -> list[str]:
    """What is there that was not; a unit at rest is no trace."""
    at_rest = re.compile(r"unit \S+ inactive dead")
    return [
        f"{node}: {line}"
        for node in before
        for line in sorted(after[node] - before[node])
        if not at_rest.fullmatch(line)
    ]


class Cycles:
    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.took: dict[str, list[float]] = defaultdict(list)
        self.problems: list[str] = []

    def play(self, verb: str, name: str, *options: str) -> str:
        began = time.monotonic()
        words = [word for option in options for word in ("-e", option)]
        done = self.cluster.lab.playbook(name, *words, check=False)
        self.took[verb].append(time.monotonic() - began)
        if done.returncode:
            self.problems.append(f"{verb}: {' '.join((done.stdout + done.stderr).split())[-300:]}")
        return done.stdout

    def stop(self) -> int:
        """Stop the job; returns the step that it has saved."""
        said = self.play("stop", "playbooks/stop.yml", f"job={JOB}")
        found = re.search(rf"Job {JOB} is stopped at step (\d+) of {STEPS}", said)
        if not found:
            self.problems.append(f"stop has named no step: {' '.join(said.split())[-200:]}")
        return int(found[1]) if found else 0

    def at_work(self, beyond: int) -> None:
        """Wait until the job has made a step beyond this one."""
        if not self.cluster.watch(self.cluster.head, JOB, "step", beyond + 1, patience=120):
            self.problems.append(f"no step beyond {beyond} within 120 s")

    def one(self, step: int) -> int:
        start = f"{' '.join(self.cluster.settings)} job={JOB} steps={STEPS} follow=false"
        self.play("start", "train.yml", start)
        self.at_work(step)
        for verb in ("status", "jobs", "logs"):
            self.play(verb, f"playbooks/{verb}.yml", *([f"job={JOB}"] if verb == "logs" else []))
        stopped = self.stop()
        self.play("resume", "playbooks/resume.yml", f"job={JOB}")
        self.at_work(stopped)
        again = self.stop()
        resumed = json.loads(self.cluster.read(f"{JOBS}/{JOB}/state.json")).get("resumed_at")
        if resumed != stopped or not step <= stopped <= again:
            self.problems.append(f"stopped at step {step}, then {stopped}, resumed at {resumed}, stopped at {again}")
        return again

    def run(self, count: int) -> list[str]:
        """Returns what was left behind."""
        self.cluster.forget(JOB)
        before, step = traces(self.cluster), 0
        try:
            for number in range(1, count + 1):
                step = self.one(step)
                print(f"cycle {number} of {count}: stopped at step {step}", file=sys.stderr, flush=True)
                if self.problems:
                    break
            time.sleep(5)
            checkpoints = self.cluster.shared(f"ls {JOBS}/{JOB}/checkpoints").split()
            if len(checkpoints) > 4:
                self.problems.append(f"checkpoints pile up: {', '.join(checkpoints)}")
            return left_behind(before, traces(self.cluster))
        finally:
            self.cluster.forget(JOB)


def table(took: dict[str, list[float]]) -> Table:
    shown = Table("VERB", "TIMES", "MEDIAN", "LONGEST", box=None)
    for verb, seconds in took.items():
        shown.add_row(verb, str(len(seconds)), f"{statistics.median(seconds):.1f} s", f"{max(seconds):.1f} s")
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.cycles", description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--cycles", type=int, default=20, help="how many (%(default)s)")
    parser.add_argument("--lab", default="", metavar="NAME", help="this lab, up and provisioned; it is left as it is")
    options = parser.parse_args()
    data.make()
    own = contextlib.nullcontext(Cluster(Lab(options.lab))) if options.lab else own_lab(Lab("faults"), "container")
    with own as cluster:
        cycles = Cycles(cluster)
        left = cycles.run(options.cycles)
    Console(width=100).print(table(cycles.took))
    print(*(left or ["nothing was left behind"]), *cycles.problems, sep="\n")
    return int(bool(left or cycles.problems))


if __name__ == "__main__":
    sys.exit(main())
