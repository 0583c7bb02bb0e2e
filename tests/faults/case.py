"""One case of the matrix: a job, a fault that hits it at its moment, and what became of both."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.faults.cluster import JOBS, LOCAL, Cluster, Training
from tests.faults.data import FOLDER
from tests.faults.verdict import CLOCK, Facts, Line

MOMENTS = {
    "start": "train.yml has not begun; the fault itself starts it",
    "before": "every node has its worker, none has made a step",
    "mid": "step 17 of 40",
    "save": "a checkpoint of step 15 or later is half written",
}
USUAL = ("before", "mid", "save")
MID, SAVE = 17, 15
PATIENCE = 420
"""Seconds that a job may take to its end after a fault."""
QUIET = 90
"""Seconds that units and workers may take to go after their job has ended."""

T = TypeVar("T")
Struck = Iterator[None]
"""A fault: a generator that hits, yields, and then mends what is mended while the job runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A row of the table in catalogue.py."""

    number: int
    """In the list of issue 6's matrix, which the README here repeats."""
    name: str
    what: str
    strike: Callable[[Case], Struck]
    loss: str = ""
    """Which time limit holds: `worker`, `loud`, `hangs`, `silent`, `boot` (verdict.goal); none for the others."""
    moments: tuple[str, ...] = USUAL
    restarts: bool | None = None
    """Whether it must end the workers, which are started again then, or must not; None: either may be."""
    left: int = 0
    """How many ranks go on, where it takes some away."""
    timed: bool = True
    """Whether the time to the next step means anything."""
    kind: str = ""
    """`vm`: container nodes cannot have it, for the reason in `because`."""
    because: str = ""
    small_share: bool = False
    """Whether the share must be one that can be filled."""
    saves_in: str = LOCAL
    """Where the checkpoint is half written at the moment `save`: on the node's own disk, or on the share."""
    prepare: Callable[[Case], None] | None = None
    """What is done before the job is started."""


class Missed(Exception):
    """The moment did not come, so nothing was tried; one line."""


class Case:
    """What a fault needs to hit, and what it leaves to be judged."""

    def __init__(self, cluster: Cluster, fault: Fault, moments: Sequence[str]):
        self.cluster, self.fault, self.moments = cluster, fault, moments
        self.moment = moments[0]
        """The present one of those at which the fault hits the job, one after the other."""
        name = "-".join([fault.name.replace("_", "-"), *moments])
        # Another name each time: what a journal still has of an earlier try shall not count.
        self.job = f"{name}-{secrets.token_hex(2)}"
        self.other = f"{self.job}-other"
        self.evidence = FOLDER / name
        self.writer = ""
        """The node whose half-written checkpoint is held right now."""
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.boot: float | None = None
        self.began = self.hit = 0.0
        self.workers: set[tuple[str, int]] = set()
        """Node and process of those that were there before the first step."""
        self.times: list[tuple[float, float, float | None]] = []
        """`began`, `hit` and `boot` of each moment that has come."""
        self.trainings: list[Training] = []
        self._undo = contextlib.ExitStack()
        self._held: tuple[str, int] | None = None

    # --- for faults ----------------------------------------------------------------------------------------------
    def sh(self, node: str, command: str, *, check: bool = True) -> str:
        return self.cluster.sh(node, command, check=check)

    def train(self, job: str = "", *, follow: bool = False) -> Training:
        log = self.evidence / f"train-{len(self.trainings) + 1}.log"
        self.trainings.append(self.cluster.train(job or self.job, log, follow=follow))
        return self.trainings[-1]

    def expect(self, holds: object, otherwise: str) -> None:
        if not holds:
            self.problems.append(otherwise)

    def later(self, mend: Callable[[], object]) -> None:
        """Mend it when the job has ended."""
        self._undo.callback(mend)

    def sleep_until(self, seconds: float) -> None:
        """Until so many seconds after the fault began; for faults that are a matter of time."""
        time.sleep(max(0, self.began + seconds - time.time()))

    def victim(self, otherwise: str = "node2") -> str:
        """At the moment `save` the node that writes."""
        return self.writer or otherwise

    # --- the moments ---------------------------------------------------------------------------------------------
    def wait_for_moment(self) -> None:
        if self.moment == "before":
            with ThreadPoolExecutor(len(self.cluster.nodes)) as pool:
                seen = list(pool.map(lambda node: self.see(node, "workers"), self.cluster.nodes))
            if not all(seen):
                raise Missed("not every node has got a worker")
            if any(answer["step"] for answer in seen):
                raise Missed("a step was made before every node had been seen with its worker")
            pairs = zip(self.cluster.nodes, seen, strict=True)
            self.workers = {(node, pid) for node, answer in pairs for pid in answer["workers"]}
        elif self.moment == "mid":
            self.reach(MID)
        elif self.moment == "save":
            self.reach(1)
            # Rank 0 writes, and the state file has the nodes in the order of their ranks.
            self.writer = json.loads(self.cluster.read(f"{JOBS}/{self.job}/state.json"))["nodes"][0]
            place = f"{self.fault.saves_in}/{self.job}/checkpoints"
            held = self.see(self.writer, "writing", place, SAVE)
            if not held:
                raise Missed(f"no checkpoint was seen half written in {place}")
            self._held = self.writer, held["held"]

    def reach(self, step: int) -> None:
        if not self.see(self.cluster.head, "step", step):
            raise Missed(f"it has not come to step {step}")

    def see(self, node: str, *question: object) -> dict | None:
        """What watch.py sees on `node`, in two minutes at most. Errors: Missed as soon as train.yml has failed."""
        for _ in range(12):
            if answer := self.cluster.watch(node, self.job, *question, patience=10):
                return answer
            if reason := self.trainings[-1].failed():
                raise Missed(f"train.yml has failed: {reason}")
        return None

    def release(self, name: str = "CONT") -> None:
        """Let the writer that was held go on, if it is still there; or end it, with KILL."""
        if self._held:
            node, pid = self._held
            self._held = None
            self.sh(node, f"kill -{name} {pid}", check=False)

    # --- all of it -----------------------------------------------------------------------------------------------
    def run(self) -> list[Facts]:
        """Start the job, strike, wait for its end, put everything right; what was found, for each moment."""
        shutil.rmtree(self.evidence, ignore_errors=True)
        self.evidence.mkdir(parents=True)
        state: dict = {}
        try:
            with self._undo:
                if self.fault.prepare:
                    self.fault.prepare(self)
                if self.moment != "start":
                    self.train()
                for moment in self.moments:
                    self.moment = moment
                    self.wait_for_moment()
                    self.strike()
                state = self.cluster.ended(self.job, PATIENCE)
        except Exception as problem:  # whatever it is, the next case is tried
            self.went_wrong(problem)
        finally:
            for mend in (self.release, *(training.give_up for training in self.trainings), self.cluster.put_right):
                self.attempt(mend)
        self.attempt(self.look_for_rest, state)
        facts = self.attempt(self.collect, state)
        self.attempt(self.cluster.forget, self.job, self.other)
        return facts or self.facts(state)

    def attempt(self, step: Callable[..., T], *arguments: object) -> T | None:
        """Do what comes after the fault; where that goes wrong the rest is done all the same."""
        try:
            return step(*arguments)
        except Exception as problem:
            self.went_wrong(problem)
            return None

    def went_wrong(self, problem: Exception) -> None:
        self.problems.append(f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}")

    def strike(self) -> None:
        self.began, self.hit, self.boot = time.time(), 0.0, None
        try:
            fault = self.fault.strike(self)
            next(fault)
            self.hit = time.time()
            self.release()
            for _ in fault:
                raise TypeError(f"{self.fault.name} yields twice")
        finally:
            self.times.append((self.began, self.hit, self.boot))

    def look_for_rest(self, ended: dict) -> None:
        """That nothing of it is left, and that no node that was off takes it up again when it has booted."""
        self.cluster.wait_for_units()
        left = self.wait_for_quiet()
        self.expect(not left, "; ".join(f"left on {node}: {' '.join(text.split())}" for node, text in left.items()))
        if ended:
            now = json.loads(self.cluster.read(f"{JOBS}/{self.job}/state.json"))
            other = {key: (ended.get(key), now.get(key)) for key in ("run_id", "state", "step")}
            again = {key: both for key, both in other.items() if both[0] != both[1]}
            self.expect(not again, f"it was taken up again after its end: {again}")

    def wait_for_quiet(self) -> dict[str, str]:
        """What is left of its units and workers on the nodes after a while, by node."""
        deadline = time.monotonic() + QUIET * self.cluster.slower
        while (left := self.cluster.busy(self.job)) and time.monotonic() < deadline:
            time.sleep(1)
        return left

    def collect(self, state: dict) -> list[Facts]:
        """Fetch what is judged, and keep it in build/faults/JOB."""
        cluster, folder = self.cluster, f"{JOBS}/{self.job}"
        command = f"journalctl --no-pager --output=json --unit minos-train@{self.job}.service"
        journals = cluster.everywhere(f"{CLOCK}; {command} --output-fields=MESSAGE")
        lines = sorted(line for node, text in journals.items() for line in Line.read(node, text))
        ledger = cluster.read(f"{folder}/ledger.jsonl")
        weights = cluster.shared(f"sha256sum < {folder}/model/model.safetensors", check=False).split()
        kept = {
            "journal.txt": "".join(f"{line.time:.3f} {line.node} {line.text}\n" for line in lines),
            "state.json": cluster.read(f"{folder}/state.json"),
            "ledger.jsonl": ledger,
        }
        for name, text in kept.items():
            Path(self.evidence / name).write_text(text + "\n", encoding="utf-8")
        return self.facts(state, lines=lines, ledger=ledger, weights=weights[0] if weights else "")

    def facts(self, state: dict, lines: Sequence[Line] = (), ledger: str = "", weights: str = "") -> list[Facts]:
        missed = [(0.0, 0.0, None)] * (len(self.moments) - len(self.times))
        return [
            Facts(
                began=began, hit=hit, lines=lines, state=state, ledger=ledger, boot=boot, weights=weights,
                workers=frozenset(self.workers),
                problems=self.problems, notes=self.notes, job=self.cluster.job,
            )
            for began, hit, boot in (*self.times, *missed)
        ]  # fmt: skip
