"""A process beside the training process that takes and gives JSON lines.

It is deaf to SIGTERM and Ctrl-C and in a session of its own, so that what is to be saved at a stop is saved; it ends
when its standard input does, and so does not outlive the training process, whatever ends that one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Child:
    """`python -m module *arguments`, with the open files `keep_open` and a nice value: training goes first.

    `hear(message)` is called in a thread of its own for each line that the process writes, and with
    {"ended": exit status} when it is gone. Errors: OSError when there is no process or thread to be had.
    """

    def __init__(self, module: str, *arguments: str, hear: Callable[[dict], None], keep_open: Sequence[int] = ()):
        self._hear = hear
        self._outbox: dict[str, str] = {}
        self._outbox_changed = threading.Condition()
        self._closing = False
        search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        # The process inherits what this thread blocks: no moment in which a signal could end it.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                ["nice", "-n", "5", sys.executable, "-P", "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": search},
                start_new_session=True,
                pass_fds=tuple(keep_open),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._listen)]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:  # what Python makes of the limit that a process more would also have met
            self._end_input()
            self._process.kill()
            raise OSError(errno.EAGAIN, str(error)) from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, kind: str, message: dict) -> None:
        """Hand `message` over, at once: a message of the same kind that has not left yet is replaced.

        Errors: TypeError for what JSON cannot hold."""
        line = json.dumps(message) + "\n"
        with self._outbox_changed:
            self._outbox[kind] = line
            self._outbox_changed.notify()

    def close(self, timeout: float) -> bool:
        """End its input once everything told has left; returns whether it ended within `timeout` seconds.

        One that did not is killed; if it hangs in the kernel, on a dead network mount, it goes when that lets go.
        """
        self._end_input()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
            self._threads[1].join(timeout)
            return True
        self._process.kill()
        return False

    def _end_input(self) -> None:
        with self._outbox_changed:
            self._closing = True
            self._outbox_changed.notify()

    def _send(self) -> None:
        stream = self._process.stdin
        with contextlib.suppress(OSError), stream:
            while True:
                with self._outbox_changed:
                    self._outbox_changed.wait_for(lambda: self._outbox or self._closing)
                    lines, self._outbox = self._outbox, {}
                if not lines:
                    return
                stream.write("".join(lines.values()))
                stream.flush()

    def _listen(self) -> None:
        with self._process.stdout as stream:
            for line in stream:
                self._hear(json.loads(line))
        self._hear({"ended": self._process.wait()})


def answer(**message: object) -> None:
    """In the process: one line to the training process, which may be gone."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")
