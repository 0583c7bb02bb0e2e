"""What rank 0 shows and keeps: progress lines, metrics.jsonl, TensorBoard and a plot.

metrics/metrics.jsonl holds one object per line, each with `type`, `step` and `time` (Unix seconds):

    start   at each start of the run: steps
    step    at each report: steps, epoch, loss, lr, grad_norm, tokens_per_s, seconds (of a step) and `nodes`, the
            figures of each machine by its name: seconds, communication_share, gpu_utilisation or cpu_utilisation
            (all three 0 to 1), gpu_memory_gb, gpu_power_w, gpu_temperature_c
    eval    epoch, heldout_loss
    epoch   epoch, loss, heldout_loss

Losses are in nats per token that counts. After a restart the lines past the checkpoint are dropped, so no step is
there twice.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Mapping
from pathlib import Path

from training.files import write_atomically
from training.reports.background import Plotter

PLOT_SECONDS = 120  # drawing takes two seconds of one core, at the lowest priority
CURVES = {
    "loss": "loss/train",
    "heldout_loss": "loss/heldout",
    "lr": "lr",
    "grad_norm": "grad_norm",
    "tokens_per_s": "tokens_per_s",
    "seconds": "step_seconds",
}


class Meter:
    """What the steps since the last report add up to."""

    def __init__(self) -> None:
        self.loss = self.counted = self.seen = self.seconds = self.steps = 0.0

    def add(self, *, loss: float, counted: float, seen: float, seconds: float) -> None:
        """One step's sums over all ranks (`loss` over `counted` of `seen` tokens) and its duration."""
        self.loss += loss
        self.counted += counted
        self.seen += seen
        self.seconds += seconds
        self.steps += 1

    def take(self) -> dict[str, float]:
        """Mean loss per token that counts, tokens/s, seconds per step; starts anew."""
        report = {
            "loss": self.loss / max(1, self.counted),
            "tokens_per_s": self.seen / self.seconds,
            "seconds": self.seconds / self.steps,
        }
        self.__init__()
        return report


class Recorder:
    """The records of one run under `directory`; on ranks other than 0 (`active=False`) every method does nothing.

    A disk that is full costs records, said once, and never the training.
    """

    def __init__(self, directory: Path, steps: int, *, active: bool, resumed_at: int, title: str = ""):
        self.active = active
        self.steps = steps
        self.file = directory / "metrics" / "metrics.jsonl"
        self.plot_file = directory / "plots" / "loss.png"
        self._title = title or directory.name
        self._events, self._purge_step = directory / "tensorboard", resumed_at + 1
        self._tensorboard = None
        self._torn = self._complained = False
        self._plotter, self._plotted = Plotter(), time.monotonic()
        if active:
            # Imported here: as a program, plot.py shall not find itself imported already.
            from training.reports.plot import read

            # A run that begins (again) at step 0 owes nothing to what is there.
            rows = [row for row in read(self.file) if row["step"] <= resumed_at] if resumed_at else []
            with self._spared():
                write_atomically(self.file, "".join(json.dumps(row) + "\n" for row in rows))
            self._keep({"type": "start", "step": resumed_at, "steps": steps})

    def step(
        self,
        *,
        step: int,
        epoch: int,
        seconds: float,
        nodes: Mapping[str, Mapping[str, float]] | None = None,
        **figures: float,
    ) -> None:
        """One progress line; `seconds` is the mean duration of a step since the last one.

        `figures` are loss and tokens_per_s (means since the last line), lr and grad_norm (of this step, before
        clipping); `nodes` is what NodeProbe gives."""
        if not self.active:
            return
        eta = datetime.timedelta(seconds=round((self.steps - step) * seconds))
        print(
            f"step {step}/{self.steps} epoch {epoch} loss {figures['loss']:.4f} lr {figures['lr']:.1e} "
            f"tokens/s {figures['tokens_per_s']:.0f} eta {eta}",
            flush=True,
        )
        row = {"type": "step", "step": step, "steps": self.steps, "epoch": epoch, "seconds": seconds}
        self._keep(row | figures | {"nodes": nodes or {}})

    def evaluation(self, *, step: int, epoch: int, heldout_loss: float) -> None:
        """One measurement on the held-out rows."""
        if not self.active:
            return
        print(f"held-out loss {heldout_loss:.4f} at step {step}/{self.steps}", flush=True)
        self._keep({"type": "eval", "step": step, "epoch": epoch, "heldout_loss": heldout_loss})

    def epoch(self, *, step: int, epoch: int, whole: bool, loss: float, heldout_loss: float) -> None:
        """The line at the end of an epoch (`whole`), or of the run within one."""
        if not self.active:
            return
        how = "done" if whole else "cut short"
        losses = f"train loss {loss:.4f} held-out loss {heldout_loss:.4f}"
        print(f"epoch {epoch} {how} at step {step}: {losses}", flush=True)
        self._keep({"type": "epoch", "step": step, "epoch": epoch, "loss": loss, "heldout_loss": heldout_loss})

    def plot(self, *, wait: bool = False) -> Path:
        """Draw the records so far to plots/loss.png, in a process beside the training; `wait` until it is there."""
        if self.active:
            self._plotted = time.monotonic()
            self._plotter.draw(self.file, self.plot_file, self._title, wait=wait)
        return self.plot_file

    def close(self) -> None:
        if self._tensorboard is not None:
            with self._spared():
                self._tensorboard.close()

    def _keep(self, row: dict[str, object]) -> None:
        row["time"] = time.time()
        with self._spared():
            with self.file.open("a", encoding="utf-8") as stream:
                # The line that a full disk cut in half ends here.
                line, self._torn = "\n" * self._torn + json.dumps(row) + "\n", True
                stream.write(line)
            self._torn = False
            self._draw_curves(row)
        if time.monotonic() - self._plotted > PLOT_SECONDS:
            self.plot()

    def _draw_curves(self, row: Mapping[str, object]) -> None:
        curves = {CURVES[key]: row[key] for key in CURVES if key in row and row["type"] != "epoch"}
        for node, figures in row.get("nodes", {}).items():
            names = {"seconds": "step_seconds"}
            curves |= {f"node/{node}/{names.get(key, key)}": value for key, value in figures.items()}
        if not curves:
            return
        try:
            self._add_scalars(curves, row["step"])
        except OSError:  # of an earlier row: its thread has found the disk full and ended
            self._tensorboard = None
            self._add_scalars(curves, row["step"])

    def _add_scalars(self, curves: Mapping[str, float], step: int) -> None:
        if self._tensorboard is None:
            # Imported here: other ranks neither need it nor wait for it.
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(self._events, purge_step=self._purge_step, max_queue=1000, flush_secs=10)
            self._purge_step = None  # a second file of this start goes on behind the first
        for name, value in curves.items():
            self._tensorboard.add_scalar(name, value, step)

    @contextlib.contextmanager
    def _spared(self):
        """A disk that does not take the records is told once and does not stop the training."""
        try:
            yield
        except OSError as error:
            if not self._complained:
                print(
                    f"alarm: records in {self.file.parents[1]} are incomplete ({error}); training goes on", flush=True
                )
            self._complained = True
