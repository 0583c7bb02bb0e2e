"""table.yml, and questions to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TABLE: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("table.yml").read_text())
# In the order of their age.
ARCHITECTURES: dict[str, dict[str, Any]] = TABLE["architectures"]
NAMES = list(ARCHITECTURES)


def within(card: str, ranges: list[str]) -> bool:
    """Tell whether a PCI id is in one of the ranges, such as 1e00-1fff."""
    return any(
        int(low, 16) <= int(card, 16) <= int(high or low, 16) for low, _, high in (r.partition("-") for r in ranges)
    )


def architecture(card: str, told: dict[str, str]) -> str | None:
    """Return the architecture of a card; `told` are ids that the inventory explains. None: nobody knows it."""
    known = (name for name, facts in ARCHITECTURES.items() if within(card, facts["ids"]))
    return told.get(card) or next(known, None)


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def of_cuda(version: str) -> dict[str, Any]:
    """Return what builds of torch with this CUDA ask for; ValueError for one older than the table."""
    for entry in TABLE["cuda"]:
        if number(version) >= number(entry["version"]):
            return entry
    oldest = TABLE["cuda"][-1]["version"]
    raise ValueError(f"nvidia_cuda is {version}: the choice of a driver knows CUDA {oldest} and newer")


def nccl_settings(cards: list[str]) -> dict[str, str]:
    """Return the environment that NCCL needs for these cards of one node; one card alone has no peer."""
    settings: dict[str, str] = {}
    for entry in TABLE["nccl"]:
        if len(cards) > 1 and any(within(card, entry["ids"]) for card in cards):
            settings |= entry["environment"]
    return settings
