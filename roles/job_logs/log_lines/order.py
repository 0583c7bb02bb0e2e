"""The journals of all nodes as one, by time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

CLOCK = 5.0  # seconds that a clock may differ before the times of its node are put right


@dataclasses.dataclass(frozen=True, order=True)
class Line:
    """A line of a journal: when by this machine's clock, where, who said it, and what."""

    time: float
    node: str
    who: str
    text: str


def shift(look: Mapping[str, Any]) -> float:
    """Return what to add to a node's times: how much its clock is behind this machine's, at least."""
    there, before, after = look["answer"]["time"], look["before"], look["after"]
    off = before - there if there < before else min(0.0, after - there)
    return off if abs(off) > CLOCK else 0.0


def merged(looks: Mapping[str, Mapping[str, Any]]) -> list[Line]:
    """Put the journals into one, by time; lines of one node stay in their order."""
    lines = []
    for node, look in looks.items():
        if not look.get("answer"):
            continue
        off = shift(look)
        lines += [Line(time + off, node, who, text) for time, who, text in look["answer"]["lines"]]
    return sorted(lines, key=lambda line: line.time)


def newest(lines: Iterable[Line], most: int) -> list[Line]:
    """Return the newest `most` of each node, in their order."""
    kept: dict[str, int] = {}
    chosen = []
    for line in reversed(list(lines)):
        kept[line.node] = kept.get(line.node, 0) + 1
        if kept[line.node] <= most:
            chosen.append(line)
    return chosen[::-1]
