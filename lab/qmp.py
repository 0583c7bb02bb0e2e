"""Talk to a running QEMU (QMP) and to the agent inside its guest: both take one JSON object a line on a Unix socket.

A connection serves one client at a time, so each call makes one of its own and is short.
"""

import base64
import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.config import LabError

PATIENCE = 20.0  # seconds for one answer; an emulated guest whose host is busy needs a few
POLL = 0.1


def monitor(sock: Path, command: str, *, patience: float = PATIENCE, **arguments) -> object:
    """Run one QMP command and return what it returns."""
    with _connection(sock, patience) as lines:
        next(lines)  # the greeting
        lines.ask("qmp_capabilities")
        return lines.ask(command, **arguments)


def human(sock: Path, line: str, *, patience: float = PATIENCE) -> None:
    """Run a command of the human monitor that says nothing when all is well (savevm, loadvm have no other form)."""
    said = monitor(sock, "human-monitor-command", patience=patience, **{"command-line": line})
    if said:
        raise LabError(f"QEMU did not do `{line}`: {str(said).strip().splitlines()[-1]}")


def agent(sock: Path, command: str, *, patience: float = PATIENCE, **arguments) -> object:
    """Run one command of the QEMU guest agent."""
    with _connection(sock, patience) as lines:
        lines.synchronise()
        return lines.ask(command, **arguments)


def execute(sock: Path, argv: list[str], *, patience: float | None = None) -> tuple[int, bytes, bytes]:
    """Run a command as root in the guest: its exit status, output and error output."""
    environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root",
                   "LANG=C.UTF-8"]  # fmt: skip
    words = ["-i", "--chdir=/root", *environment, *argv]
    begun = agent(sock, "guest-exec", path="/usr/bin/env", arg=words, **{"capture-output": True})
    deadline = None if patience is None else time.monotonic() + patience
    while True:
        now = agent(sock, "guest-exec-status", pid=begun["pid"])
        if now["exited"]:
            break
        if deadline is not None and time.monotonic() > deadline:
            raise LabError(f"`{' '.join(argv)}` has not ended in the node after {patience:.0f} s")
        time.sleep(POLL)
    status = now["exitcode"] if "exitcode" in now else 128 + now["signal"]
    return status, *(base64.b64decode(now.get(f"{stream}-data", "")) for stream in ("out", "err"))


class _Lines:
    """The other end's answers, with its events left out."""

    def __init__(self, stream, name: str):
        self._stream, self._name = stream, name

    def __iter__(self):
        return self

    def __next__(self) -> dict:
        while line := self._stream.readline():
            with_answer = json.loads(line.lstrip(b"\xff"))
            if "event" not in with_answer:
                return with_answer
        raise LabError(f"{self._name} was closed by the other end")

    def _send(self, command: str, arguments: dict, prefix: bytes = b"") -> None:
        words = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._stream.write(prefix + json.dumps(words).encode() + b"\n")
        self._stream.flush()

    def ask(self, command: str, **arguments) -> object:
        self._send(command, arguments)
        answer = next(self)
        if "error" in answer:
            raise LabError(f"{command}: {answer['error'].get('desc', answer['error'])}")
        return answer["return"]

    def synchronise(self) -> None:
        """The agent may still hold a half line of somebody before us, and we may find its answer to that."""
        token = random.randrange(1 << 31)
        self._send("guest-sync-delimited", {"id": token}, prefix=b"\xff")
        while (line := self._stream.readline()) and not (line.startswith(b"\xff") or b"\xff" in line):
            pass
        if not line or json.loads(line.rpartition(b"\xff")[2]).get("return") != token:
            raise LabError(f"{self._name}: the guest's agent answers something else")


@contextmanager
def _connection(path: Path, patience: float) -> Iterator[_Lines]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(patience)
            connection.connect(str(path))
            with connection.makefile("rwb") as stream:
                yield _Lines(stream, str(path))
    except TimeoutError:
        raise LabError(f"no answer on {path} within {patience:.0f} s") from None
    except (ConnectionError, FileNotFoundError) as problem:
        raise LabError(f"{path}: {problem.strerror}") from None
