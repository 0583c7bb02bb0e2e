"""The lab's processes: started with a mark in their environment, found again by it, ended through a pidfd.

The mark is `MINOS_LAB_PROCESS=<lab>/<role>`. It is inherited by children on the host; inside a container
node it is not (a node's processes end with the node's first one). No process id is ever stored.
"""

import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from lab.config import LabError

MARK = "MINOS_LAB_PROCESS"
HELPER = "helper"  # a short-lived child of a command; found alive by the next command, it is an orphan
EXEC_PATIENCE = 5.0  # seconds
ENV_END = 51 - 3  # proc_pid_stat(5) counts from 1; the first field after the name is number 3


@dataclass(frozen=True)
class Process:
    pid: int
    role: str


def marked(lab: str, role: str) -> dict[str, str]:
    """The environment of a process that belongs to the lab."""
    return {**os.environ, MARK: f"{lab}/{role}", "LC_ALL": "C.UTF-8"}


def run(lab: str, *argv: str | Path, stdin: str | None = None, check: bool = True) -> str:
    """Run a short command to its end and return what it printed.

    Raises LabError with the command and its last words when it fails and `check` is set.
    """
    done = subprocess.run(
        [str(word) for word in argv],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        # A running node's own supervisor keeps its mark for its children: nobody may sweep those as orphans.
        env=marked(lab, HELPER) if MARK not in os.environ else None,
    )
    if check and done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise LabError(f"`{' '.join(map(str, argv))}` failed with {done.returncode}: {words[-1]}")
    return done.stdout


def spawn(lab: str, role: str, argv: list[str], *, log: Path, cwd: Path | None = None) -> None:
    """Start a process that outlives this command, in a session of its own so that Ctrl-C does not reach it."""
    with log.open("ab") as output:
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=marked(lab, role),
            start_new_session=True,
            cwd=cwd,
        )


def find(lab: str, role: str | None = None) -> list[Process]:
    """The lab's processes on the host that are alive, all of them or those of one role. Needs root."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            its_role = _role(lab, int(entry.name))
            if its_role is not None and role in (None, its_role):
                found.append(Process(int(entry.name), its_role))
    return found


def kill(lab: str, processes: list[Process], *, patience: float = 10.0) -> None:
    """SIGKILL, then wait until they are gone. Raises LabError where the kernel does not let go of one.

    Through a pidfd, and only after the mark was read again: a process id that the kernel has meanwhile
    given to somebody else is left alone.
    """
    descriptors = {}
    try:
        for process in processes:
            try:
                descriptors[os.pidfd_open(process.pid)] = process
            except ProcessLookupError:
                continue
        signalled = {}
        for descriptor, process in descriptors.items():
            if _role(lab, process.pid) == process.role:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                signalled[descriptor] = process
        _wait_gone(signalled, patience)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _wait_gone(descriptors: dict[int, Process], patience: float) -> None:
    poll = select.poll()
    waiting = set(descriptors)
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + patience
    while waiting:
        ended = poll.poll(max(0, int((deadline - time.monotonic()) * 1000)))
        if not ended:
            stuck = ", ".join(f"{descriptors[d].role} (pid {descriptors[d].pid})" for d in waiting)
            raise LabError(f"still alive after {patience:.0f} s: {stuck}; see `ps -o stat,wchan:30,args -p PID`")
        for descriptor, _ in ended:
            poll.unregister(descriptor)
            waiting.discard(descriptor)


def _role(lab: str, pid: int) -> str | None:
    """The role of a live process of root's that carries this lab's mark, else None."""
    prefix = f"{MARK}={lab}/".encode()
    try:
        if Path(f"/proc/{pid}").stat().st_uid != 0:
            return None
        for variable in _environment(pid).split(b"\0"):
            if variable.startswith(prefix):
                return variable[len(prefix) :].decode(errors="replace")
    except OSError:  # ended meanwhile, or a kernel thread
        return None
    return None


def _environment(pid: int) -> bytes:
    """A live process's environment; raises OSError for one that has none of its own (ended, or a kernel thread).

    While a process turns into another program (execve) it has none for a moment, tens of milliseconds on a busy
    machine, and a node that has just been switched on would count as off.
    """
    environment = Path(f"/proc/{pid}/environ")
    if found := environment.read_bytes():
        return found
    deadline = time.monotonic() + EXEC_PATIENCE
    while _turns_into_a_program(pid) and time.monotonic() < deadline:
        time.sleep(0.001)
    return environment.read_bytes()


def _turns_into_a_program(pid: int) -> bool:
    """True between the moment it has the new program's file and the one in which its environment is in place."""
    Path(f"/proc/{pid}/exe").readlink()  # raises OSError for a zombie and for a kernel thread
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_name[ENV_END]) == 0
