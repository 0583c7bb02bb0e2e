"""Time and tokens of the optimizer steps of one run, taken alike for every candidate."""

from __future__ import annotations

import time

import torch


class Clock:
    """Counts `steps` steps, of which the first `warm_up` (at least one) are in no figure.

    A step lasts from the end of the one before to its own end, so that whatever a loop does between two steps is part
    of it. A GPU is waited for at the first and the last mark only: in between a loop may run ahead of it.
    """

    def __init__(self, *, warm_up: int, steps: int):
        if not 1 <= warm_up < steps:
            raise ValueError(f"warm-up: {warm_up} of {steps} steps cannot be measured; write 1 to {steps - 1}")
        self.warm_up, self.steps = warm_up, steps
        self.tokens = 0
        self._marks: list[tuple[float, float, int]] = []  # (wall seconds, CPU seconds, tokens so far) after each step

    def saw(self, tokens: int) -> None:
        """`tokens` without padding belong to the step that runs."""
        self.tokens += tokens

    def step_done(self) -> None:
        if torch.cuda.is_available() and len(self._marks) + 1 in (self.warm_up, self.steps):
            torch.cuda.synchronize()
        self._marks.append((time.perf_counter(), time.process_time(), self.tokens))

    def figures(self) -> dict[str, float]:
        """Useful tokens per second and per CPU second, and what a step held and took; on a GPU its peak memory, too."""
        first, last = self._marks[self.warm_up - 1], self._marks[-1]
        steps = len(self._marks) - self.warm_up
        wall, cpu, tokens = (end - start for start, end in zip(first, last, strict=True))
        figures = {
            "tokens_per_s": tokens / wall,
            "tokens_per_cpu_s": tokens / cpu,
            "tokens_per_step": tokens / steps,
            "step_s": wall / steps,
        }
        if torch.cuda.is_available():
            figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return figures
