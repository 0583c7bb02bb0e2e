"""Dead machines, noticed by the kernel. A node that loses its power says nothing: whoever waits for it in a collective
waits for the whole timeout, which before the first step, in an evaluation and at the end is half an hour.

Its kernel is silent too, that of a slow one is not. So the connections between the ranks are probed by TCP itself, and
one that stays silent fails with an error at once, whatever the timeout is.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

SILENT = 60
"""Seconds; short enough for who waits, long enough for a cable that is put right."""
LONGEST = 24 * 3600  # seconds; TCP takes no pause of more than 32767 between two probes
PROBES = 4


def watch(silent: int = SILENT) -> int:
    """Let each TCP connection that this process has by now fail `silent` seconds after the last sign of life from the
    machine at its other end. Returns how many there are.

    For connections whose other side reads what it is sent (gloo, torch's stores). NCCL's may be left unread for as long
    as a slow GPU computes, which ends them too: call this before there are any.
    """
    found, silent = 0, min(silent, LONGEST)
    for file in Path("/proc/self/fd").iterdir():
        # An error: closed meanwhile, or not connected.
        with contextlib.suppress(OSError):
            if file.is_socket():
                with socket.socket(fileno=os.dup(int(file.name))) as connection:
                    found += _watch(connection, silent)
    return found


def _watch(connection: socket.socket, silent: int) -> bool:
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
        return False
    connection.getpeername()
    pause = max(1, silent // (PROBES + 1))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # while there is nothing to send
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, pause)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, pause)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    connection.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silent * 1000
    )  # while what was sent is unanswered
    return True
