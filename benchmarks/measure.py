"""Take turns: every measurement is a process of its own, and the candidates alternate within each round.

pyperf and pytest-benchmark do neither: pyperf finishes one benchmark before it begins the next, so whatever else the
machine does in those minutes counts against one candidate only, and it keeps one number per run where wall time AND CPU
time are wanted; pytest-benchmark measures everything in one process, where the candidates inherit each other's memory
and caches.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

Figures = dict[str, float]


def measure_once(arguments: Sequence[str], *, threads: int = 1) -> Figures:
    """Run `python ARGUMENTS --output FILE` and return the JSON object that it leaves in FILE.

    An argument `{scratch}` becomes a directory that is empty at the start and gone afterwards.
    Errors: RuntimeError with the end of what the process printed when it fails.
    """
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "figures.json"
        environment = os.environ | dict.fromkeys(ONE_THREAD, str(threads)) | {"TOKENIZERS_PARALLELISM": "false"}
        given = [argument.replace("{scratch}", f"{directory}/scratch") for argument in arguments]
        command = [sys.executable, *given, "--output", str(output)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            printed = (done.stdout + done.stderr)[-4000:]
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{printed}")
        return json.loads(output.read_text(encoding="utf-8"))


def interleave(candidates: Mapping[str, Sequence[str]], rounds: int, *, threads: int = 1) -> dict[str, list[Figures]]:
    """Measure every candidate once per round, in turn (A B C, A B C, ...); candidate -> its figures."""
    figures: dict[str, list[Figures]] = {name: [] for name in candidates}
    for number in range(rounds):
        for name, arguments in candidates.items():
            figures[name].append(measure_once(arguments, threads=threads))
            shown = "  ".join(f"{key} {value:,.6g}" for key, value in figures[name][-1].items())
            print(f"round {number + 1}/{rounds}  {name}: {shown}", file=sys.stderr, flush=True)
    return figures


def median(figures: Sequence[Figures], key: str) -> float:
    return statistics.median(one[key] for one in figures)
