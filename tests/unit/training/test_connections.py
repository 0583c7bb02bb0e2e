"""A machine that has gone is noticed by the kernel, on the connections of a real group; one that is slow is not."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from training import connections, distributed
from training.config import Config

# In a network of its own, whose cable is cut: nothing that is sent arrives, and nobody says so.
CUT = """
import socket, subprocess, sys
from training import connections
run = lambda *command: subprocess.run(command, check=True)
run("ip", "link", "set", "lo", "up")
listener = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(listener.getsockname())
other, _ = listener.accept()
if sys.argv[1] == "watched":
    print(connections.watch(2), flush=True)
if sys.argv[2] == "cut":
    run("ip", "link", "set", "lo", "down")
if sys.argv[3] == "sends":
    one.sendall(b"hello")
one.settimeout(8)
try:
    one.recv(1)
except TimeoutError as error:  # of Python's own limit, or the kernel's ETIMEDOUT
    print("ended" if error.errno else "waits")
"""


@pytest.fixture
def network() -> list[str]:
    command = ["unshare", "--user", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*command, "ip", "link", "set", "lo", "up"]).returncode:
        pytest.skip("this machine lets nobody make a network of his own")
    return command


CASES = [
    ("watched", "cut", "sends", "ended"),
    ("watched", "cut", "waits", "ended"),
    ("watched", "whole", "sends", "waits"),
    ("not watched", "cut", "sends", "waits"),
]


@pytest.mark.parametrize(("how", "link", "does", "becomes"), CASES)
def test_who_waits_for_a_machine_that_is_gone_is_told(network, how, link, does, becomes):
    command = [*network, sys.executable, "-c", CUT, how, link, does]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    if how == "watched":
        assert said.pop(0) == "2", "both ends are here, and the listener is no connection"
    assert said[0] == becomes, said


RANK_1 = """
import sys
from training import distributed
from training.config import Config
distributed.start(Config(data_train="a.txt", backend="gloo", timeout_step=90))
sys.stdin.read()
distributed.end()
"""


@pytest.fixture
def group(monkeypatch) -> Iterator[subprocess.Popen]:
    """A group of two: this process is rank 0."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    other = subprocess.Popen(
        [sys.executable, "-c", RANK_1], env={**os.environ, **variables, "RANK": "1"}, stdin=subprocess.PIPE
    )
    for name, value in {**variables, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    try:
        distributed.start(Config(data_train="a.txt", backend="gloo", timeout_step=90))
        yield other
    finally:
        other.stdin.close()
    distributed.end()
    other.wait(60)


def files() -> list[str]:
    return sorted(file.name for file in Path("/proc/self/fd").iterdir())


def test_the_connections_of_a_group_are_watched_as_long_as_its_owner_wants(group):
    limits = []
    for name in files():
        if Path("/proc/self/fd", name).is_socket():
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as connection:
                connection.getpeername()
                limits.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
    assert len(limits) >= 4 and set(limits) == {90_000}, (
        "both ends of the store's connection to here, its other, gloo's"
    )
    before = files()
    assert connections.watch() == len(limits)
    assert files() == before, "it leaves files open"
