"""The fault matrix: what is read of journals and playbooks."""

from __future__ import annotations

import json
import re
import subprocess
import time

import pytest

from tests.faults.cluster import error_of
from tests.faults.verdict import CLOCK, START, STEP, Line
from training import distributed
from training.config import Config
from training.reports import Recorder


def test_the_lines_that_count_are_those_that_training_prints(tmp_path, capsys):
    distributed.start(Config(data_train="x.txt", backend="gloo"))
    distributed.end()
    recorder = Recorder(tmp_path, 40, active=True, resumed_at=0)
    recorder.step(step=3, epoch=1, seconds=0.3, loss=1.0, lr=1e-3, tokens_per_s=10, grad_norm=1.0)
    start, step = capsys.readouterr().out.splitlines()
    assert START.match(start)[1] == "1" and STEP.match(step)[1] == "3"


def test_a_journal_is_read_as_systemd_writes_it():
    def row(clock: int, steady: int, boot: str, message: object) -> str:
        times = {"__REALTIME_TIMESTAMP": str(clock), "__MONOTONIC_TIMESTAMP": str(steady)}
        return json.dumps(times | {"_BOOT_ID": boot, "MESSAGE": message}) + "\n"

    hour = 3600 * 10**6
    journal = "1700000000.0 b2\n" + row(1700000000250000, 99, "b1", "before its reboot")
    journal += row(1700000009000000 - hour, 9 * 10**6, "b2", "an hour behind") + row(1, 1, "b2", [255, 1])
    lines = [Line(1700000000.25, "node1", "before its reboot"), Line(1700000009.0, "node1", "an hour behind")]
    assert list(Line.read("node1", journal)) == lines
    assert list(Line.read("node1", "")) == [], "a node that is off"


def test_a_node_says_how_its_steady_clock_stands():
    offset, boot = subprocess.run(["sh", "-c", CLOCK], capture_output=True, text=True).stdout.split()
    assert abs(float(offset) + time.monotonic() - time.time()) < 1 and re.fullmatch("[0-9a-f]{32}", boot)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("[ERROR]: Task failed: Action failed: node1 trains job one: wait\n", "node1 trains job one: wait"),
        ('fatal: [node1]: FAILED! => {"changed": false, "msg": "node1 trains job one"}', "node1 trains job one"),
        ("PLAY RECAP", "no error shown"),
    ],
)
def test_an_error_of_a_playbook_is_one_line(output, said):
    assert error_of(output) == said
