"""What rank 0 shows and keeps: progress lines, metrics.jsonl, TensorBoard and a plot.

metrics/metrics.jsonl holds one object per line: {"type": "step", step, steps, epoch, loss, lr, grad_norm,
tokens_per_s, seconds}, {"type": "eval", step, epoch, heldout_loss} and {"type": "epoch", step, epoch, loss,
heldout_loss}, each with `time` (Unix seconds). Losses are in nats per token that counts. After a restart the
lines past the checkpoint are dropped, so no step is there twice."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping
from pathlib import Path

from training.files import write_atomically

PLOT_SECONDS = 30  # a plot takes half a second; epochs of a tiny data set may be shorter than that


class Meter:
    """What the steps since the last report add up to."""

    def __init__(self) -> None:
        self.loss = self.counted = self.seen = self.seconds = self.steps = 0.0

    def add(self, sums: Mapping[str, float], seconds: float) -> None:
        """One step's sums over all ranks (`loss` over `counted` of `seen` tokens) and its duration."""
        self.loss += sums["loss"]
        self.counted += sums["counted"]
        self.seen += sums["seen"]
        self.seconds += seconds
        self.steps += 1

    def take(self) -> dict[str, float]:
        """Mean loss per token that counts, tokens/s without padding, seconds per step; starts anew."""
        report = {
            "loss": self.loss / max(1, self.counted),
            "tokens_per_s": self.seen / self.seconds,
            "seconds": self.seconds / self.steps,
        }
        self.__init__()
        return report


class Recorder:
    """The records of one run in `job_dir`; on ranks other than 0 (`active=False`) every method does
    nothing.
    """

    def __init__(self, job_dir: Path, steps: int, *, active: bool, resumed_at: int):
        self.active = active
        self.steps = steps
        self.file = job_dir / "metrics" / "metrics.jsonl"
        self.plot_file = job_dir / "plots" / "loss.png"
        self.plotted = float("-inf")
        if active:
            # Imported here: other ranks neither need it nor wait for it.
            from torch.utils.tensorboard import SummaryWriter

            self.rows = [row for row in read(self.file) if row["step"] <= resumed_at]
            write_atomically(self.file, "".join(json.dumps(row) + "\n" for row in self.rows))
            self.tensorboard = SummaryWriter(job_dir / "tensorboard", purge_step=resumed_at + 1, flush_secs=10)

    def step(self, *, step: int, epoch: int, seconds: float, **figures: float) -> None:
        """One progress line; `seconds` is the mean duration of a step since the last one.

        `figures` are loss and tokens_per_s (means since the last line), lr and grad_norm (of this step,
        before clipping)."""
        if not self.active:
            return
        eta = datetime.timedelta(seconds=round((self.steps - step) * seconds))
        print(
            f"step {step}/{self.steps} epoch {epoch} loss {figures['loss']:.4f} lr {figures['lr']:.1e} "
            f"tokens/s {figures['tokens_per_s']:.0f} eta {eta}",
            flush=True,
        )
        row = {"type": "step", "step": step, "steps": self.steps, "epoch": epoch, "seconds": seconds}
        self._keep(row | figures)

    def evaluation(self, *, step: int, epoch: int, heldout_loss: float) -> None:
        """One measurement on the held-out rows."""
        if not self.active:
            return
        print(f"held-out loss {heldout_loss:.4f} at step {step}/{self.steps}", flush=True)
        self._keep({"type": "eval", "step": step, "epoch": epoch, "heldout_loss": heldout_loss})

    def epoch(self, *, step: int, epoch: int, whole: bool, loss: float, heldout_loss: float) -> None:
        """The line at the end of an epoch (`whole`), or of the run within one, and the plot so far."""
        if not self.active:
            return
        how = "done" if whole else "cut short"
        losses = f"train loss {loss:.4f} held-out loss {heldout_loss:.4f}"
        print(f"epoch {epoch} {how} at step {step}: {losses}", flush=True)
        self._keep({"type": "epoch", "step": step, "epoch": epoch, "loss": loss, "heldout_loss": heldout_loss})
        if time.monotonic() - self.plotted > PLOT_SECONDS:
            self.plot()

    def plot(self) -> None:
        """Draw train and held-out loss over the steps to plots/loss.png."""
        if not self.active:
            return
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(8, 5))
        for kind, key, label in (("step", "loss", "train"), ("eval", "heldout_loss", "held-out")):
            points = [(row["step"], row[key]) for row in self.rows if row["type"] == kind]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="o" if kind == "eval" else None)
        axes.set(xlabel="step", ylabel="loss (nats per token)", title=f"{self.plot_file.parents[1].name}: loss")
        axes.grid(alpha=0.3)
        axes.legend()
        self.plot_file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.plot_file.with_name(".loss.png.tmp")
        figure.savefig(temporary, format="png", dpi=120)
        temporary.replace(self.plot_file)
        self.plotted = time.monotonic()
        pyplot.close(figure)

    def close(self) -> None:
        if self.active:
            self.tensorboard.close()

    def _keep(self, row: dict[str, object]) -> None:
        row["time"] = time.time()
        self.rows.append(row)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        for key in ("loss", "heldout_loss", "lr", "grad_norm", "tokens_per_s"):
            if key in row and row["type"] != "epoch":
                name = {"loss": "loss/train", "heldout_loss": "loss/heldout"}.get(key, key)
                self.tensorboard.add_scalar(name, row[key], row["step"])


def read(file: Path) -> list[dict[str, object]]:
    """The rows of a metrics.jsonl; a last line that a crash cut in half is left out."""
    rows = []
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
