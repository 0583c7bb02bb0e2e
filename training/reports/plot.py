"""One picture of a run, from its metrics.jsonl: loss, speed, and what each machine did.

    python -m training.reports.plot METRICS.jsonl OUT.png [--title TEXT]

A run draws with the same file in a process of its own (background.py). Neither torch nor the rest of `training` is
imported here: such a process takes the training's cores for one second, not for five.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

BY_NAME = 8  # up to so many machines have a line each; of more, the range and the extremes are drawn
SMOOTH_ABOVE = 150  # points of a line; a longer one is drawn faint, with its mean over a stretch
STRETCHES = 60

Rows = Sequence[Mapping]
Points = list[tuple[float, float]]


def read(file: Path) -> list[dict[str, object]]:
    """The rows of a metrics.jsonl; a line that a crash or a full disk cut in half is left out."""
    rows = []
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def smooth(points: Points) -> Points:
    """Each point's mean with its neighbours, as many before as after it, 1/STRETCHES of all points together."""
    half = max(1, len(points) // STRETCHES // 2)
    values = [value for _, value in points]
    means = (statistics.fmean(values[max(0, at - half) : at + half + 1]) for at in range(len(values)))
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]


def draw_line(axes, points: Points, label: str, colour: str) -> None:
    """A line through `points`; through many, their mean over a faint one. Few points are marked."""
    if len(points) > SMOOTH_ABOVE:
        axes.plot(*zip(*points, strict=True), color=colour, alpha=0.25, linewidth=0.7)
        points = smooth(points)
    axes.plot(*zip(*points, strict=True), color=colour, label=label, marker="o" * (len(points) < 30), markersize=4)


def draw_loss(axes, rows: Rows) -> None:
    curves = {
        "training": ([(row["step"], row["loss"]) for row in rows if row["type"] == "step"], "tab:blue"),
        "held-out": ([(row["step"], row["heldout_loss"]) for row in rows if row["type"] == "eval"], "tab:red"),
    }
    for name, (points, colour) in curves.items():
        if points:
            draw_line(axes, points, f"{name}, {points[-1][1]:.4g} at the end", colour)
    axes.set(title="Loss", ylabel="nats per token")


def draw_speed(axes, rows: Rows) -> None:
    points = [(row["step"], row["tokens_per_s"]) for row in rows if row["type"] == "step"]
    if points:
        middle = statistics.median(value for _, value in points)
        draw_line(axes, points, "tokens per second", "tab:green")
        axes.axhline(middle, color="black", linestyle=":", linewidth=1, label=f"median {middle:,.0f}")
    axes.set(title="Speed of all machines together", ylabel="tokens per second")
    from_zero(axes)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def draw_nodes(axes, rows: Rows, figure: Callable[[Mapping], float | None], unit: str) -> None:
    """A line for each machine that has this figure; of many machines the range and the two extremes."""
    nodes: dict[str, Points] = {}
    for row in rows:
        for node, figures in row.get("nodes", {}).items():
            if (value := figure(figures)) is not None:
                nodes.setdefault(node, []).append((row["step"], value))
    means = {node: statistics.fmean(value for _, value in points) for node, points in nodes.items()}
    named = sorted(nodes)
    if len(nodes) > BY_NAME:
        values: dict[float, list[float]] = {}
        for step, value in (point for points in nodes.values() for point in points):
            values.setdefault(step, []).append(value)
        low, high = (smooth([(step, edge(values[step])) for step in sorted(values)]) for edge in (min, max))
        edges = [value for _, value in low], [value for _, value in high]
        axes.fill_between(sorted(values), *edges, color="grey", alpha=0.3, label=f"all {len(nodes)} machines")
        named = [min(means, key=means.get), max(means, key=means.get)]
    for node, colour in zip(named, colours(), strict=False):
        draw_line(axes, nodes[node], f"{node}, mean {means[node]:.3g} {unit}", colour)
    if not nodes:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="grey")
    from_zero(axes, to=100 if unit == "%" else 0)


def draw_whole_steps(axes, rows: Rows) -> None:
    points = [(row["step"], row["seconds"]) for row in rows if row["type"] == "step"]
    if points:
        draw_line(axes, points, f"whole step, median {statistics.median(y for _, y in points):.3g} s", "black")
    from_zero(axes)


def from_zero(axes, to: float = 0) -> None:
    """Let the axis begin at 0 and reach above the highest value and above `to`."""
    highest = max(to, axes.dataLim.y1 if axes.has_data() else 0)
    axes.set_ylim(0, 1.08 * highest or 1)


def colours() -> list[str]:
    from matplotlib import colormaps

    return list(colormaps["Dark2"].colors)


def utilisation(figures: Mapping) -> float | None:
    share = figures.get("gpu_utilisation", figures.get("cpu_utilisation"))
    return None if share is None else 100 * share


def own_seconds(figures: Mapping) -> float | None:
    """What a machine works on a step; the rest of the step it waits for the exchange of gradients."""
    if "seconds" not in figures:
        return None
    return figures["seconds"] * (1 - figures.get("communication_share", 0))


def headline(rows: Rows, restarts: Sequence[int]) -> str:
    """The run in one line of figures."""
    steps = [row for row in rows if row["type"] == "step"]
    heldout = [row["heldout_loss"] for row in rows if row["type"] == "eval"]
    if not steps:
        return "no steps yet"
    nodes = {node for row in steps for node in row.get("nodes", {})}
    befores = [0, *(row["step"] for row in steps)]
    took = sum((row["step"] - before) * row["seconds"] for row, before in zip(steps, befores, strict=False))
    parts = [
        f"step {steps[-1]['step']:,} of {steps[-1]['steps']:,}",
        f"held-out loss {heldout[0]:.4g} → {heldout[-1]:.4g}" if heldout else "",
        f"{datetime.timedelta(seconds=round(took))} of training",
        f"{len(nodes)} machine{'s' * (len(nodes) > 1)}" if nodes else "",
        f"{len(restarts)} restart{'s' * (len(restarts) > 1)}" if restarts else "",
    ]
    return "   |   ".join(part for part in parts if part)


def draw(rows: Rows, output: Path, title: str) -> None:
    """The picture as PNG; `output` is replaced as a whole."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((loss, speed), (busy, work)) = pyplot.subplots(2, 2, figsize=(13, 9), layout="constrained", sharex=True)
    restarts = [row["step"] for row in rows if row["type"] == "start" and row["step"] > 0]
    figure.suptitle(f"{title}\n{headline(rows, restarts)}", fontsize=13)
    draw_loss(loss, rows)
    draw_speed(speed, rows)
    draw_nodes(busy, rows, utilisation, "%")
    draw_nodes(work, rows, own_seconds, "s")
    draw_whole_steps(work, rows)
    on_gpus = any("gpu_utilisation" in figures for row in rows for figures in row.get("nodes", {}).values())
    busy.set(title=f"Utilisation of each machine's {'GPUs' if on_gpus else 'CPU threads'}", ylabel="% busy")
    work.set(
        title="Own work of each machine in a step\n(from there to the black line it waits for the others)",
        ylabel="seconds",
    )
    for axes in (loss, speed, busy, work):
        for number, step in enumerate(sorted(set(restarts))):
            label = "restart" if number == 0 else None
            axes.axvline(step, color="black", linestyle="--", linewidth=1, alpha=0.6, label=label)
        axes.grid(alpha=0.3)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize="small", frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(output)
    pyplot.close(figure)


def main() -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.reports.plot", description=__doc__.splitlines()[0])
    parser.add_argument("metrics", type=Path, help="metrics.jsonl of a run")
    parser.add_argument("output", type=Path, help="PNG file to write")
    parser.add_argument("--title", default="", help="default: the name of the run's directory")
    options = parser.parse_args()
    rows = read(options.metrics)
    if not rows:
        print(f"{options.metrics}: no records; give the metrics/metrics.jsonl of a run", file=sys.stderr)
        return 2
    try:
        draw(rows, options.output, options.title or options.metrics.resolve().parents[1].name)
    except OSError as error:
        print(f"{options.output}: cannot be written ({error})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
