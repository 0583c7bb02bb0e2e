"""What the checks have in common."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

GIB = 2**30
MB = 10**6


@dataclasses.dataclass(kw_only=True, frozen=True)
class Check:
    """What one check found; `fix` is empty unless there is something to mend."""

    verdict: str
    name: str
    figure: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:<5} {self.name:<24} {self.figure}" + (f"  ({self.fix})" if self.fix else "")


def devices() -> list[torch.device]:
    """The GPUs that torch sees, else the CPU."""
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return gpus or [torch.device("cpu")]


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Median duration of `work`, after a first time that does not count."""

    def once() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    once()
    return sorted(once() for _ in range(repeats))[repeats // 2]
