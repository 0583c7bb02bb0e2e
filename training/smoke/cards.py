"""What GPUs can do at most, to judge a measured rate by."""

from __future__ import annotations

import re

# TFLOP/s of dense bf16 matrix products with fp32 accumulation, from NVIDIA's data sheets and white papers. GeForce
# cards do half of what their fp16 figures promise, since those accumulate in fp16.
BF16_TFLOPS = {
    "RTX 3060": 25.5,
    "RTX 3060 Ti": 32.4,
    "RTX 3070": 40.6,
    "RTX 3070 Ti": 43.5,
    "RTX 3080": 59.5,
    "RTX 3080 Ti": 68.2,
    "RTX 3090": 71.2,
    "RTX 3090 Ti": 80.0,
    "RTX 4060": 30.2,
    "RTX 4060 Ti": 44.1,
    "RTX 4070": 58.3,
    "RTX 4070 SUPER": 71.0,
    "RTX 4070 Ti": 80.2,
    "RTX 4070 Ti SUPER": 88.2,
    "RTX 4080": 97.5,
    "RTX 4080 SUPER": 104.4,
    "RTX 4090": 165.2,
    "RTX 5060": 38.4,
    "RTX 5060 Ti": 47.4,
    "RTX 5070": 61.7,
    "RTX 5070 Ti": 87.9,
    "RTX 5080": 112.6,
    "RTX 5090": 209.5,
    "RTX A4000": 76.7,
    "RTX A5000": 111.1,
    "RTX A6000": 154.8,
    "RTX 6000 Ada": 364.2,
    "A10": 125.0,
    "A30": 165.0,
    "A40": 149.7,
    "A100": 312.0,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
    "H100": 989.4,
    "H100 PCIe": 756.0,
    "H200": 989.4,
    "H200 NVL": 835.0,
}
OTHERWISE = re.compile(r"\b(Laptop|Max-Q|Mobile|MIG|SFF|D)\b")  # the same name, but not the same card


def bf16_tflops(name: str) -> float | None:
    """The rate of the card that the driver calls `name`, such as `NVIDIA GeForce RTX 3090`; None if not known."""
    if OTHERWISE.search(name):
        return None
    known = [card for card in BF16_TFLOPS if re.search(rf"\b{re.escape(card)}\b", name, re.IGNORECASE)]
    return BF16_TFLOPS[max(known, key=len)] if known else None
