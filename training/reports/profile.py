"""A recording of some steps with the PyTorch profiler."""

from __future__ import annotations

from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from training.distributed import Place

SKIPPED = 10  # steps of a start that are not like the others: caches fill, kernels are chosen, blocks compiled
OPERATORS = 12


class Profiler:
    """Records `steps` steps from the eleventh of this start on; with 0 steps it does nothing.

    Each rank leaves directory/profile/<node>-rank<r>.json.gz for ui.perfetto.dev or chrome://tracing, and rank 0
    prints where the time went. Writing that out takes some seconds, in which the ranks wait.
    """

    def __init__(self, directory: Path, steps: int, place: Place):
        self.file = directory / "profile" / f"{place.node}-rank{place.rank}.json.gz"
        self._place, self._steps, self._profile = place, steps, None
        if steps:
            on_gpu = place.device.type == "cuda"
            self._profile = profile(
                activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu,
                schedule=schedule(wait=SKIPPED - 1, warmup=1, active=steps, repeat=1),
                on_trace_ready=self._write,
                acc_events=True,
            )
            self._profile.start()

    def step(self) -> None:
        """Tell that a step is over."""
        if self._profile:
            self._profile.step()

    def close(self) -> None:
        """Leave the profiler; steps that are recorded by then are written."""
        if self._profile:
            self._profile.stop()
            self._profile = None

    def _write(self, recorded: profile) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(self.file))
        except OSError as error:
            print(f"profile: {self.file} cannot be written ({error}); training goes on", flush=True)
            return
        if self._place.is_main:
            order = "self_cpu_time_total" if self._place.device.type == "cpu" else "self_device_time_total"
            table = recorded.key_averages().table(sort_by=order, row_limit=OPERATORS, max_name_column_width=40)
            print(f"profile of {self._steps} steps: {self.file}\n{table}", flush=True)
