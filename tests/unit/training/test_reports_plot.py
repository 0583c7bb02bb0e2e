"""The picture of a run: what its lines and legends say, and that it is drawn beside the training."""

from __future__ import annotations

import runpy
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import pytest

from tests.unit.training.conftest import ROOT
from training.reports import Recorder, metrics, plot

matplotlib.use("Agg")
from matplotlib import pyplot

PNG = b"\x89PNG"


def step(number: int, nodes: dict[str, dict[str, float]], **figures: float) -> dict[str, object]:
    figures = {"loss": 5.0 / number, "tokens_per_s": 1000.0, "seconds": 2.0} | figures
    return {"type": "step", "step": number, "steps": 40, "nodes": nodes, **figures}


def run_of(machines: int, steps: int) -> list[dict[str, object]]:
    """A run with a restart, held-out losses and `machines` GPU machines, each busier than the one before."""
    rows: list[dict[str, object]] = [{"type": "start", "step": 0, "steps": steps}]
    rows.append({"type": "eval", "step": 0, "heldout_loss": 5.5})
    for number in range(1, steps + 1):
        figures = {f"n{index:02d}": {"seconds": 2.0, "gpu_utilisation": index / 100} for index in range(machines)}
        for row in figures.values():
            row["communication_share"] = 0.25
        rows.append(step(number, figures, tokens_per_s=100.0 if number == 1 else 1000.0))
    rows.append({"type": "eval", "step": steps, "heldout_loss": 1.25})
    rows.insert(len(rows) // 2, {"type": "start", "step": steps // 2, "steps": steps})
    return rows


@pytest.fixture
def axes():
    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


def legend(axes) -> list[str]:
    return axes.get_legend_handles_labels()[1]


def test_the_headline_and_the_final_figures(axes):
    rows = run_of(3, 40)
    assert plot.headline(rows, [20]) == (
        "step 40 of 40   |   held-out loss 5.5 → 1.25   |   0:01:20 of training   |   3 machines   |   1 restart"
    )
    plot.draw_loss(axes, rows)
    assert legend(axes) == ["training, 0.125 at the end", "held-out, 1.25 at the end"]
    plot.draw_speed(axes, rows)
    assert "median 1,000" in legend(axes)
    assert axes.get_ylim()[0] == 0


def test_each_machine_has_its_line_and_its_mean(axes):
    plot.draw_nodes(axes, run_of(3, 40), plot.utilisation, "%")
    assert legend(axes) == ["n00, mean 0 %", "n01, mean 1 %", "n02, mean 2 %"]
    assert axes.get_ylim()[1] > 100
    axes.clear()
    plot.draw_nodes(axes, run_of(1, 40), plot.own_seconds, "s")
    assert legend(axes) == ["n00, mean 1.5 s"]  # three quarters of 2 s: the rest is waiting
    plot.draw_whole_steps(axes, run_of(1, 40))
    assert legend(axes)[1] == "whole step, median 2 s"
    assert axes.get_ylim()[1] > 2


def test_many_machines_are_a_range_with_its_extremes(axes):
    plot.draw_nodes(axes, run_of(50, 10), plot.utilisation, "%")
    assert legend(axes) == ["all 50 machines", "n00, mean 0 %", "n49, mean 49 %"]


def test_a_machine_that_joined_late_begins_late(axes):
    busy = {"cpu_utilisation": 0.5}
    rows = [step(1, {"a": busy}), step(2, {"a": busy, "b": busy}), step(3, {"b": {}})]
    plot.draw_nodes(axes, rows, plot.utilisation, "%")
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[1, 2], [2]]


def test_many_points_are_smoothed_around_each_step(axes):
    points = [(number, float(number % 2)) for number in range(5000)]
    plot.draw_line(axes, points, "noise", "tab:blue")
    faint, bold = axes.get_lines()
    assert (len(faint.get_xdata()), len(bold.get_xdata())) == (5000, 5000)
    assert all(0.45 < value < 0.55 for value in bold.get_ydata()[100:-100])
    straight = [(number, 2.0 * number) for number in range(600)]
    assert [value for _, value in plot.smooth(straight)][50:-50] == pytest.approx([2.0 * n for n in range(50, 550)])


@pytest.mark.parametrize(("machines", "steps"), [(0, 0), (0, 1), (1, 10), (3, 200), (12, 40)])
def test_every_size_of_run_is_drawn(machines, steps, tmp_path):
    output = tmp_path / "plots/run.png"
    plot.draw(run_of(machines, steps) if steps else [{"type": "start", "step": 0, "steps": 5}], output, "a $ run_1")
    assert output.read_bytes().startswith(PNG)
    assert [file.name for file in output.parent.iterdir()] == ["run.png"]


def test_training_does_not_wait_for_the_picture(tmp_path, capsys):
    recorder = Recorder(tmp_path, 4, active=True, resumed_at=0, title="demo")
    recorder.step(step=1, epoch=1, seconds=0.5, loss=1.0, lr=0.1, grad_norm=1.0, tokens_per_s=10.0)
    began = time.process_time(), time.perf_counter()
    assert recorder.plot() == tmp_path / "plots/loss.png"
    recorder.plot()  # one at a time
    own = time.process_time() - began[0]
    assert not recorder.plot_file.exists()
    assert recorder.plot(wait=True).read_bytes().startswith(PNG)
    assert own < 0.2 * (time.perf_counter() - began[1])
    recorder.close()
    assert "plot:" not in capsys.readouterr().out


def test_the_picture_follows_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "PLOT_SECONDS", -1)
    recorder = Recorder(tmp_path, 4, active=True, resumed_at=0)
    deadline = time.monotonic() + 60
    while not recorder.plot_file.exists():
        assert time.monotonic() < deadline
        recorder.evaluation(step=1, epoch=1, heldout_loss=2.0)
        time.sleep(0.05)
    recorder.close()


def test_a_picture_that_fails_is_told_and_no_more(tmp_path, capsys):
    recorder = Recorder(tmp_path, 4, active=True, resumed_at=0)
    (tmp_path / "plots").write_text("in the way")
    recorder.plot(wait=True)
    assert capsys.readouterr().out.startswith(f"plot: {tmp_path}/plots/loss.png: cannot be written (")
    recorder.close()


def test_by_hand(tmp_path):
    command = [sys.executable, "-m", "training.reports.plot", str(tmp_path / "none.jsonl"), str(tmp_path / "x.png")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (
        2,
        f"{tmp_path}/none.jsonl: no records; give the metrics/metrics.jsonl of a run\n",
    )


def test_the_process_that_draws_has_no_torch():
    code = f"import runpy, sys; runpy.run_path({plot.__file__!r}); sys.exit('torch' in sys.modules)"
    assert runpy.run_path(plot.__file__)["draw"]  # the file stands alone
    assert subprocess.run([sys.executable, "-P", "-c", code], cwd=Path("/"), check=False, timeout=60).returncode == 0
