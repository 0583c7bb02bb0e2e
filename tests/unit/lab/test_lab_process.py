"""The lab's processes: found by their mark from their first moment on."""

import os
import signal
import subprocess
import sys

import pytest

from lab import process

LAB = "unittest"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may read the environment of root's processes")
def test_a_process_is_known_from_its_first_moment_on():
    """By `kill`, which looks at once. One in eight had no environment to be known by: its program was not in place."""
    for _ in range(60):
        started = subprocess.Popen(
            [sys.executable, "-S", "-c", "input()"], env=process.marked(LAB, "tester"), stdin=subprocess.PIPE
        )
        process.kill(LAB, [process.Process(started.pid, "tester")])
        started.communicate()
        assert started.returncode == -signal.SIGKILL
    assert process.find(LAB) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root may read the environment of root's processes")
def test_a_process_without_an_environment_is_not_waited_for():
    bare = subprocess.Popen(["cat"], env={}, stdin=subprocess.PIPE)
    try:
        assert process.find(LAB) == []
        assert bare.poll() is None
    finally:
        bare.communicate()
