"""What rank 0 prints and keeps, over restarts and over a disk that is full."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.unit.training.conftest import ROOT
from training.reports import Meter, Recorder
from training.reports.plot import read

FIGURES = {"loss": 2.34567, "lr": 0.001, "grad_norm": 0.5, "tokens_per_s": 12345.6}
NODES = {
    "n1": {"seconds": 0.5, "communication_share": 0.25, "gpu_utilisation": 0.9, "gpu_power_w": 170.0},
    "n2": {"seconds": 0.5, "cpu_utilisation": 0.8},
}


def record(directory: Path, steps: range, *, resumed_at: int, of: int = 20) -> Recorder:
    recorder = Recorder(directory, of, active=True, resumed_at=resumed_at)
    for step in steps:
        recorder.step(step=step, epoch=1, seconds=0.5, nodes=NODES, **FIGURES)
    return recorder


def curves(directory: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_meter_is_the_mean_over_tokens_not_over_steps():
    meter = Meter()
    meter.add(loss=10.0, counted=5, seen=20, seconds=1.0)
    meter.add(loss=2.0, counted=1, seen=40, seconds=3.0)
    assert meter.take() == {"loss": 2.0, "tokens_per_s": 15.0, "seconds": 2.0}
    meter.add(loss=3.0, counted=1, seen=4, seconds=1.0)
    assert meter.take() == {"loss": 3.0, "tokens_per_s": 4.0, "seconds": 1.0}


def test_what_is_shown_and_kept(tmp_path, capsys):
    recorder = record(tmp_path, range(10, 11), resumed_at=0)
    recorder.evaluation(step=10, epoch=1, heldout_loss=2.5)
    recorder.epoch(step=10, epoch=1, whole=True, loss=2.4, heldout_loss=2.5)
    recorder.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 10/20 epoch 1 loss 2.3457 lr 1.0e-03 tokens/s 12346 eta 0:00:05",
        "held-out loss 2.5000 at step 10/20",
        "epoch 1 done at step 10: train loss 2.4000 held-out loss 2.5000",
    ]
    rows = read(tmp_path / "metrics/metrics.jsonl")
    assert [row["type"] for row in rows] == ["start", "step", "eval", "epoch"]
    assert rows[1].items() >= {"step": 10, "steps": 20, "seconds": 0.5, "nodes": NODES, **FIGURES}.items()
    assert abs(rows[3]["time"] - time.time()) < 60
    drawn = curves(tmp_path)
    assert drawn["loss/train"] == [(10, pytest.approx(2.34567))]
    assert drawn["loss/heldout"] == [(10, 2.5)]
    assert drawn["step_seconds"] == [(10, 0.5)]
    assert drawn["node/n1/gpu_utilisation"] == [(10, pytest.approx(0.9))]
    assert drawn["node/n2/step_seconds"] == [(10, 0.5)]
    assert "node/n2/gpu_utilisation" not in drawn


def test_only_rank_0_keeps_anything(tmp_path, capsys):
    recorder = Recorder(tmp_path, 20, active=False, resumed_at=0)
    recorder.step(step=1, epoch=1, seconds=0.5, nodes=NODES, **FIGURES)
    recorder.evaluation(step=1, epoch=1, heldout_loss=2.5)
    recorder.epoch(step=1, epoch=1, whole=True, loss=2.4, heldout_loss=2.5)
    recorder.plot(wait=True)
    recorder.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_restart_drops_what_came_after_the_checkpoint(tmp_path):
    record(tmp_path, range(1, 9), resumed_at=0).close()
    file = tmp_path / "metrics/metrics.jsonl"
    with file.open("a") as stream:
        stream.write('{"type": "step", "step": 9, "lo')  # killed while writing
    record(tmp_path, range(6, 11), resumed_at=5).close()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows if row["type"] == "step"] == list(range(1, 11))
    assert [row["step"] for row in rows if row["type"] == "start"] == [0, 5]
    assert [step for step, _ in curves(tmp_path)["loss/train"]] == list(range(1, 11))

    record(tmp_path, range(1, 3), resumed_at=0).close()
    assert [row["step"] for row in read(file) if row["type"] == "step"] == [1, 2]


def test_metrics_survive_a_line_cut_in_half(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n{"st')
    assert read(file) == [{"step": 1}, {"step": 3}]
    assert read(tmp_path / "absent") == []


# The limit of a file's size stands for the full disk: the kernel refuses to write on, with an OSError as well.
FULL_DISK = """
import resource, sys
from pathlib import Path
from tests.unit.training.test_reports import record
directory = Path(sys.argv[1])
recorder = record(directory, range(1, 3), resumed_at=0, of=6000)
size = (directory / "metrics/metrics.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
for step in range(3, 400):
    recorder.step(step=step, epoch=1, seconds=0.5, nodes={}, loss=1.0, lr=1.0, grad_norm=1.0, tokens_per_s=1.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for step in range(400, 403):
    recorder.step(step=step, epoch=1, seconds=0.5, nodes={}, loss=1.0, lr=1.0, grad_norm=1.0, tokens_per_s=1.0)
recorder.close()
"""


def test_a_full_disk_costs_records_and_not_the_training(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("alarm: records in ") == 1
    assert "are incomplete ([Errno 27] File too large" in ended.stdout
    assert "step 402/6000" in ended.stdout
    kept = [row["step"] for row in read(tmp_path / "metrics/metrics.jsonl") if row["type"] == "step"]
    assert kept == [1, 2, 400, 401, 402]
    assert [step for step, _ in curves(tmp_path)["loss/train"]][-3:] == [400, 401, 402]
