"""Sums for the small model of the matrix: nothing to download, the same bytes every time."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.labs import ROOT

FOLDER = ROOT / "build" / "faults"
ROWS = {"train.jsonl": 3000, "heldout.jsonl": 60}


def make(folder: Path = FOLDER) -> None:
    """Write the two files that job.yaml names."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(6)
    for name, rows in ROWS.items():
        lines = []
        for _ in range(rows):
            first, second = chance.randrange(1000), chance.randrange(1000)
            answer = f"{first} plus {second} is {first + second}"
            lines.append(json.dumps({"instruction": f"add {first} and {second}", "response": answer}) + "\n")
        (folder / name).write_text("".join(lines), encoding="utf-8")
