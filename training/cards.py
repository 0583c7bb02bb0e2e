"""Whether the GPUs are there that a job was started with: what trains on GPUs shall not go on on a CPU without a word.

`MINOS_GPUS` (templates/job.env.j2) says how many; 0, or nothing, where the job trains on CPUs, or nobody has counted.
"""

from __future__ import annotations

import os
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")


def wanted() -> int:
    return int(os.environ.get("MINOS_GPUS") or 0)


def of_driver() -> int:
    """How many the loaded driver shows; without torch, whose import takes seconds."""
    return len(list(DRIVER.iterdir())) if DRIVER.is_dir() else 0


def of_torch() -> int:
    """How many torch can use: none where CUDA does not start, though NVML may count them."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def missing(node: str, who: str, there: int) -> str:
    """The line for a node where `who` (the driver, torch) sees fewer than are wanted; empty where all are there."""
    return (
        f"{node}: {who} sees {there} of the {wanted()} GPUs that the job was started with" if there < wanted() else ""
    )
