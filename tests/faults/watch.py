"""Runs on a node: waits until the job has come to a moment, or acts on its processes there. Nothing but Python's own.

    watch.py JOB SECONDS workers             its workers run here
    watch.py JOB SECONDS step N              step N is done
    watch.py JOB SECONDS writing DIR N       a checkpoint of step N or later is half written in DIR, and is held there
    watch.py JOB SECONDS said TEXT           its unit has said TEXT here
    watch.py JOB SECONDS ended               its state file says so
    watch.py JOB SECONDS signal NAME         its workers here get this signal

It prints one JSON object, with `step` (of the state file) and what it has found, or exits 1 after SECONDS, or when the
job has ended without it. A checkpoint of the matrix's model is written in some 50 ms, too short to be hit from outside.
So its writer is stopped (SIGSTOP) in the middle, as by a disk that does not answer; whoever asked for it lets
it go on (SIGCONT), and it ends what it had begun.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

JOBS, PROC = Path("/srv/minos/jobs"), Path("/proc")
HIDDEN = re.compile(r"\.writing-step-(\d+)-.+-(\d+)")  # training.files.hidden_path
ENDED = ("done", "stopped", "failed")
SILENCE = 10
"""Seconds after which the share does not answer. Its mount is a hard one: whoever reads there waits until it does."""


def state(job: str) -> dict:
    """The job's state file, {} while there is none or the share does not answer."""
    found = {}

    def read() -> None:
        with contextlib.suppress(OSError, ValueError):
            found.update(json.loads((JOBS / job / "state.json").read_text(encoding="utf-8")))

    reader = threading.Thread(target=read, daemon=True)  # ends with this program, also where it still waits
    reader.start()
    reader.join(SILENCE)
    return dict(found)


def workers(job: str) -> list[int]:
    """The training processes of the job on this node, without their agent and their own helpers."""
    found = []
    for process in PROC.iterdir():
        with contextlib.suppress(OSError):  # it has gone meanwhile
            if process.name.isdigit() and f"minos-train@{job}.service" in (process / "cgroup").read_text():
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if "training.finetune" in words and "torch.distributed.run" not in words:
                    found.append(int(process.name))
    return found


def stopped(pid: int) -> bool:
    """Whether SIGSTOP has reached a process; one that waits for a disk only stops when that has answered."""
    for _ in range(10_000):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return True
        time.sleep(0.001)
    return False


def hold_writer(directory: str, step: int) -> dict | None:
    """Stop whoever writes a checkpoint of `step` or later right now; None where nobody does."""
    with contextlib.suppress(OSError):  # directories come and go here, and so does the writer
        for path in Path(directory).glob("**/.writing-step-*"):
            hidden = HIDDEN.fullmatch(path.name)
            if hidden and int(hidden[1]) >= step:
                pid = int(hidden[2])
                os.kill(pid, signal.SIGSTOP)
                if stopped(pid) and path.exists():
                    return {"held": pid, "writing": int(hidden[1])}
                os.kill(pid, signal.SIGCONT)  # it was quicker
    return None


def said(job: str, text: str) -> dict | None:
    command = ["journalctl", "--no-pager", "--output=cat", "--unit", f"minos-train@{job}.service"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    found = [line for line in lines if text in line]
    return {"said": found[0]} if found else None


def send(job: str, name: str) -> dict | None:
    found = workers(job)
    for pid in found:
        os.kill(pid, getattr(signal, f"SIG{name}"))
    return {"workers": found} if found else None


def has_ended(job: str) -> dict | None:
    content = state(job)
    return {"state": content} if content.get("state") in ENDED else None


def question(job: str, what: str, arguments: list[str]) -> tuple[Callable[[], dict | None], float]:
    """What to ask until it gives an answer, and the seconds between two questions."""
    match what:
        case "workers":
            return lambda: {"workers": found} if (found := workers(job)) else None, 0.1
        case "step":
            return lambda: {} if state(job).get("step", 0) >= int(arguments[0]) else None, 0.1
        case "writing":
            return lambda: hold_writer(arguments[0], int(arguments[1])), 0.002
        case "said":
            return lambda: said(job, arguments[0]), 0.5
        case "ended":
            return lambda: has_ended(job), 0.5
        case "signal":
            return lambda: send(job, arguments[0]), 0.02
    raise SystemExit(__doc__)


def main() -> int:
    job, patience, what, *arguments = sys.argv[1:]
    ask, pause = question(job, what, arguments)
    deadline = time.monotonic() + float(patience)
    while True:
        asked = time.monotonic()
        if (answer := ask()) is not None:
            break
        took = time.monotonic() - asked
        if time.monotonic() > deadline or (what != "ended" and has_ended(job)):
            return 1
        # Long looks would take the processor from what is looked at; but a half-written file is gone soon.
        time.sleep(pause if what == "writing" else max(pause, min(1, 4 * took)))
    print(json.dumps({"step": state(job).get("step", 0)} | answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
