"""The cycles: what counts as left behind."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace

import pytest

from tests.faults import cycles


def test_memory_of_a_gpu_that_is_still_held_is_left_behind(tmp_path):
    """nvidia-smi is a stand-in that prints what the real one prints of one process; elsewhere there is none."""

    def looked():
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", cycles.LOOK], env=os.environ | {"PATH": path}, capture_output=True, text=True
        )
        return {"node1": {line for line in done.stdout.splitlines() if line.startswith("gpu")}}

    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\necho "$*" >> "$0.asked"\n')
    smi.chmod(0o755)
    before = looked()
    smi.write_text(smi.read_text() + "echo 4711, 10234 MiB\n")
    assert cycles.left_behind(before, looked()) == ["node1: gpu process 4711, 10234 MiB"]
    asked = (tmp_path / "nvidia-smi.asked").read_text().splitlines()
    assert asked == ["--query-compute-apps=pid,used_memory --format=csv,noheader"] * 2


def test_a_node_that_cannot_be_looked_at_is_not_taken_for_a_clean_one():
    said = {"node1": "port 0.0.0.0:22\nlooked", "node2": "looked", "node3": ""}
    cluster = SimpleNamespace(everywhere=lambda _: said)
    with pytest.raises(RuntimeError, match="node3 cannot be looked at"):
        cycles.traces(cluster)
    said["node3"] = "looked"
    assert cycles.left_behind(cycles.traces(cluster), cycles.traces(cluster)) == []


def test_what_cycles_leave_behind_is_named_but_for_the_unit_at_rest():
    before = {"node1": {"port 0.0.0.0:22", "unit minos-store.service active running"}, "node2": set()}
    rest = {"unit minos-train@cycles.service inactive dead", "unit minos-nvidia.service inactive dead"}
    after = {"node1": before["node1"] | rest, "node2": {"unit minos-train@cycles.service failed failed", "port 1"}}
    assert cycles.left_behind(before, after) == [
        "node2: port 1",
        "node2: unit minos-train@cycles.service failed failed",
    ]
