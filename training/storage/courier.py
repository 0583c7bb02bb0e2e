"""The process that does all traffic to the shared directory while a run trains; only this process waits for it.

    python -m training.storage.courier JOB_DIR RECORDS PATIENCE

Orders on standard input, one JSON object per line: {"state": fields}, {"push": checkpoint, "directory", "keep"},
{"look": ticket}, {"drain": ticket}, {"close": true}. Answers: {"stop": whether a stop of the job is recorded,
"looked": ticket}, {"drained": ticket}, {"pushed": path}, {"push_failed": path, "reason"}, {"alarm": line or ""}.
RECORDS is the directory whose files are kept the same in JOB_DIR, which itself may be given: nothing to copy then.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from training.state import JobState
from training.storage.child import answer
from training.storage.records import Records
from training.storage.steps import Steps

STOP_FILE = "stop-requested"
LAST_PUSH = 30.0  # seconds that a push may still take after the training process is gone without a word


class Courier:
    """Two hands: one for what is small and must not wait (state, records, stop requests), one for checkpoints."""

    def __init__(self, job_dir: Path, records: Path, patience: float):
        self.job_dir, self.state, self.patience = job_dir, JobState(job_dir), patience
        self.records = Records(records, job_dir) if records != job_dir else None
        self.changed = threading.Condition()
        self.fields: dict[str, object] = {}
        self.tickets: dict[str, int] = {}
        self.push: dict | None = None
        self.shared: dict[str, Steps] = {}  # kept, so that what this process has written is not read again over NFS
        self.pushing = False
        self.stop: bool | None = None
        self.news = False  # something to do for the hand of small things
        self.turn_began: float | None = None
        self.alarm = ""
        for work in (self.small_things, self.checkpoints, self.watch):
            threading.Thread(target=work, daemon=True).start()

    def order(self, message: dict) -> None:
        """Note one order; the hands do it."""
        with self.changed:
            self.fields |= message.get("state", {})
            self.tickets |= {kind: message[kind] for kind in ("look", "drain") if kind in message}
            if "push" in message:
                self.push = message
            self.news = True
            self.changed.notify_all()

    # --- small things --------------------------------------------------------------------------------------------
    def small_things(self) -> None:
        """A turn at every order, at least one per second."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.news, timeout=1)
                self.news = False
            self.turn_began = time.monotonic()
            try:
                self.turn()
            except (OSError, ValueError) as error:
                self.turn_began = None
                self.complain(f"the shared directory {self.job_dir} cannot be used ({error}); training goes on")
                time.sleep(1)
            else:
                self.turn_began = None
                self.complain("")

    def turn(self) -> None:
        """Bring everything up to date once. Errors: OSError, ValueError; what is not done yet stays ordered."""
        # Listed, because an NFS client answers a single missing name from its cache for half a minute.
        stop = any(path.name == STOP_FILE for path in self.job_dir.iterdir())
        look = self.tickets.pop("look", None)
        if look is not None or stop != self.stop:
            self.stop = stop
            answer(stop=stop, looked=look or 0)
        with self.changed:
            all_pushed = self.push is None and not self.pushing
            fields, self.fields = self.fields, {}
            drain = self.tickets.get("drain")
        try:
            if fields:
                self.state.progress(**fields)
        except (OSError, ValueError):
            with self.changed:
                self.fields = fields | self.fields
            raise
        if self.records:
            self.records.bring()
        if drain is not None and all_pushed:
            with self.changed:
                if self.tickets["drain"] == drain:
                    del self.tickets["drain"]
            answer(drained=drain)

    def watch(self) -> None:
        """Say so when a turn takes too long: then the shared directory hangs."""
        while True:
            time.sleep(min(1, self.patience / 4))
            began = self.turn_began
            if began is not None and time.monotonic() - began > self.patience:
                for_long = f"has not answered for {self.patience:.0f} s"
                self.complain(f"the shared directory {self.job_dir} {for_long}; training goes on")

    def complain(self, alarm: str) -> None:
        """Tell a change from fine to not fine or back, once."""
        with self.changed:
            if bool(alarm) != bool(self.alarm):
                answer(alarm=alarm)
            self.alarm = alarm

    # --- checkpoints ---------------------------------------------------------------------------------------------
    def checkpoints(self) -> None:
        """Push what is ordered; of several that wait only the newest. One that fails is tried again."""
        attempt = 0
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.push)
                order, self.push, self.pushing = self.push, None, True
            try:
                shared = self.shared.setdefault(order["directory"], Steps(Path(order["directory"])))
                target = shared.receive(Path(order["push"]), order["keep"])
                if self.state.file.exists():
                    self.order({"state": {"checkpoint": str(target)}})
                answer(pushed=order["push"])
                attempt = 0
            except (OSError, ValueError) as error:
                attempt += 1
                if Path(order["push"]).exists():  # else a newer one has taken its place, and is ordered, too
                    answer(push_failed=order["push"], reason=str(error))
                    if isinstance(error, OSError):  # else the local one is damaged, and stays so
                        self.try_again(order, seconds=min(60, 2**attempt))
            with self.changed:
                self.pushing, self.news = False, True
                self.changed.notify_all()

    def try_again(self, order: dict, seconds: float) -> None:
        """Order the same push again after a while, unless a newer one comes first."""
        with self.changed:
            self.changed.wait_for(lambda: self.push, timeout=seconds)
            self.push = self.push or order


def main() -> None:
    courier = Courier(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
    closed = False
    for line in sys.stdin:
        message = json.loads(line)
        closed = closed or "close" in message
        courier.order(message)
    # The training process is gone. A checkpoint on its way is worth a moment, to what may hang none.
    deadline = time.monotonic() + (0 if closed else LAST_PUSH)
    while (courier.push or courier.pushing) and time.monotonic() < deadline:
        time.sleep(0.1)
    os._exit(0)  # the hands may be inside a call that does not return


if __name__ == "__main__":
    main()
