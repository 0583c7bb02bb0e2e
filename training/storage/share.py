"""The training process's end of the courier: nothing in here waits for the shared directory unless it says so."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from training.storage.child import Child
from training.storage.records import recall


class Share:
    """What a run keeps up to date in its job directory while it trains; on ranks other than 0 (`active=False`)
    every method does nothing.

    `job_dir` is on the shared directory. With `local_dir`, on this machine's own disk, record files are written to
    `records` and follow to `job_dir` within a second or two; without it `records` is `job_dir` itself. After
    `patience` seconds without an answer of the shared directory a line says so, and `alarm` does until it is back.
    """

    def __init__(
        self, job_dir: Path, local_dir: Path | None = None, *, active: bool = True, patience: float = 30.0
    ) -> None:
        self.job_dir = Path(job_dir)
        self.records = Path(local_dir) / "records" if local_dir else self.job_dir
        self.stop_requested = False
        """Whether a stop of the whole job was recorded when the courier last looked, which it does each second."""
        self.pushed: Path | None = None
        """The newest checkpoint that has arrived, as it is called on this machine."""
        self._active, self._patience = active, patience
        self._alarms = {"courier": "", "share": "", "push": ""}
        self._told: dict[str, dict] = {}  # the newest of each kind, for a courier that follows one that died
        self._ticket = self._looked = self._drained = 0
        self._heard = threading.Condition()
        self._courier: Child | None = None
        self._closed = False

    @property
    def alarm(self) -> str:
        """What is wrong with the shared directory right now, one line; empty: nothing."""
        return "; ".join(filter(None, self._alarms.values()))

    def watch(self) -> None:
        """Start the courier, and with it the look for stop requests; anything else starts it, too.

        Where it cannot be started (a limit of processes or of memory) the next call tries again."""
        if not self._active or self._courier is not None or self._closed:
            return
        try:
            self.records.mkdir(parents=True, exist_ok=True)
            arguments = (str(self.job_dir), str(self.records), str(self._patience))
            self._courier = Child("training.storage.courier", *arguments, hear=self._hear)
        except OSError as error:
            line = f"nothing goes to {self.job_dir} for now: its courier cannot be started ({error}); training goes on"
            if not self._alarms["courier"]:
                print(f"alarm: {line}", flush=True)
            self._alarms["courier"] = line
            return
        if self._alarms["courier"]:
            print(f"the courier to {self.job_dir} is at work", flush=True)
        self._alarms["courier"] = ""
        for kind, message in self._told.items():
            self._courier.tell(kind, message)

    def state(self, **fields: object) -> None:
        """Lay `fields` over the job's state file (training.state.JobState.progress), soon; the newest value wins."""
        with self._heard:  # also told from the thread that hears of a written checkpoint
            self._tell("state", {"state": self._told.get("state", {}).get("state", {}) | fields})

    def push(self, checkpoint: Path, directory: Path, keep: int) -> None:
        """Copy a complete local checkpoint to `directory`, keep the newest `keep` there. A newer push replaces one
        that has not begun."""
        self._tell("push", {"push": str(checkpoint), "directory": str(directory), "keep": keep})

    def recall(self, *names: str) -> None:
        """At a start, before training: fetch these record files, which another node may have written to last.

        This waits for the shared directory. Errors: OSError."""
        if self._active and self.records != self.job_dir:
            for name in names:
                recall(self.job_dir / name, self.records / name)

    def look(self, timeout: float = 10.0) -> bool:
        """Whether a stop of the whole job is recorded now; after `timeout` seconds, when it was last seen."""
        self._ask("look", timeout, lambda ticket: self._looked >= ticket)
        return self.stop_requested

    def drain(self, timeout: float) -> bool:
        """Wait until all that was told has arrived, at most `timeout` seconds; returns whether it has."""
        return self._ask("drain", timeout, lambda ticket: self._drained >= ticket) and not self._alarms["push"]

    def close(self, timeout: float = 60.0) -> bool:
        """`drain`, then end the courier; returns whether all has arrived. A line says it if not."""
        # Also where no courier is at work: one that died took along what it had not done, and an earlier start of this
        # run may have left records on this machine. Who never had anything to say does not wait for the share.
        arrived = self.drain(timeout) if self._told or self.records != self.job_dir else True
        self._closed = True
        if self._courier is not None:
            self._courier.tell("close", {"close": True})
            self._courier.close(5.0)
        if not arrived:
            print(f"alarm: not everything has arrived in {self.job_dir}; {self.alarm or 'it is slow'}", flush=True)
        return arrived

    def _tell(self, kind: str, message: dict) -> None:
        if self._active and not self._closed:
            with self._heard:
                self.watch()
                if self._courier is not None:
                    self._courier.tell(kind, message)
                else:
                    json.dumps(message)  # refused now, not when there is a courier to tell
                self._told[kind] = message

    def _ask(self, kind: str, timeout: float, answered) -> bool:
        if not self._active or self._closed:
            return True
        with self._heard:
            self._ticket += 1
            ticket = self._ticket
        self._tell(kind, {kind: ticket})
        deadline = time.monotonic() + timeout
        with self._heard:
            while not answered(ticket) and time.monotonic() < deadline:
                self.watch()  # one that died is followed by one that is told the same
                self._heard.wait(min(1, max(0, deadline - time.monotonic())))
            return answered(ticket)

    def _hear(self, message: dict) -> None:
        """One answer of the courier, in a thread of its own."""
        with self._heard:
            if "stop" in message:
                self.stop_requested = message["stop"]
                self._looked = max(self._looked, message["looked"])
            self._drained = max(self._drained, message.get("drained", 0))
            if "alarm" in message:
                self._alarms["share"] = message["alarm"]
                print(f"alarm: {message['alarm']}" if message["alarm"] else f"{self.job_dir} answers again", flush=True)
            if "pushed" in message:
                self.pushed = Path(message["pushed"])
                if self._alarms["push"]:
                    print(f"{self.pushed.name} has arrived in {self.job_dir}", flush=True)
                self._alarms["push"] = ""
            if "push_failed" in message:
                name = Path(message["push_failed"]).name
                line = f"{name} stays on this machine for now: {message['reason']}"
                if line != self._alarms["push"]:
                    print(f"alarm: {line}", flush=True)
                self._alarms["push"] = line
            if "ended" in message and not self._closed:
                print(f"alarm: the courier has ended (status {message['ended']}); a new one takes over", flush=True)
                self._courier = None
            self._heard.notify_all()
