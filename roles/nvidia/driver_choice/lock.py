"""The CUDA version that the locked torch brings along."""

from __future__ import annotations

import re

# Builds for CUDA 13 pin cuda-toolkit, those for 12 the run-time library.
PINNED = re.compile(r"^(?:cuda-toolkit|nvidia-cuda-runtime(?:-cu\d+)?)==(\d+\.\d+)", re.MULTILINE)


def cuda_of(lock: str) -> str:
    """Return such as 13.0; empty for a lock of torch's CPU build."""
    found = PINNED.search(lock)
    return found[1] if found else ""
