"""The picture of the recipe hello."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch


@torch.no_grad()
def draw(
    output: Path,
    x: torch.Tensor,
    y: torch.Tensor,
    curve: Callable[[torch.Tensor], torch.Tensor],
    model: torch.nn.Module,
    losses: list[float],
    nodes: Iterable[str],
) -> Path:
    """Points (`x`, `y`: N, 1), the `curve` behind them, what `model` has learned, and the loss of each step, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (fit, loss) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    grid = torch.linspace(float(x.min()), float(x.max()), 400)[:, None]
    device = next(model.parameters()).device
    learned = model(grid.to(device)).cpu()
    off = float((learned - curve(grid)).abs().mean())
    fit.plot(x, y, ".", color="lightgrey", label=f"{len(x)} noisy points")
    fit.plot(grid, curve(grid), "--", color="black", label="the curve behind them")
    fit.plot(grid, learned, color="tab:red", label=f"learned, off by {off:.3f} on average")
    fit.set(title=f"Fit after {len(losses)} steps on {', '.join(dict.fromkeys(nodes))}", xlabel="x", ylabel="y")
    loss.plot(range(1, len(losses) + 1), losses)
    noise = float((y - curve(x)).square().mean())
    loss.axhline(noise, linestyle="--", color="black", label="the noise in the points")
    loss.set(title=f"Loss, {losses[-1]:.4f} at the end", xlabel="step", ylabel="mean squared error", yscale="log")
    for axes in (fit, loss):
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize="small", frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    pyplot.close(figure)
    return output
