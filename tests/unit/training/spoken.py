"""What several processes say, line by line, each with the process that said it: as the journal hears it.

systemd's journal reads a socket on which the kernel tells it who wrote; there is no systemd where unit tests run, but
the socket is the same.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from training.failures import Line

SENDER = struct.Struct("3i")  # unix(7), SO_PASSCRED: pid, uid, gid


def spoken(command: Sequence[str], cwd: Path) -> list[Line]:
    """Run `command` to its end and return all that it and its children say."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with theirs:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
        )
    lines, begun = [], {}
    while True:
        text, credentials, _, _ = ours.recvmsg(65536, socket.CMSG_SPACE(SENDER.size))
        if not text:
            break
        pid = SENDER.unpack(credentials[0][2])[0]
        *whole, begun[pid] = (begun.get(pid, "") + text.decode(errors="replace")).split("\n")
        lines += [Line(at=time.time(), pid=pid, text=each) for each in whole]
    ours.close()
    process.wait(60)
    return lines
