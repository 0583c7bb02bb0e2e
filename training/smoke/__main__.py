"""Is this machine fit for training? One line per check, in less than half a minute.

    python -m training.smoke [--directory DIR] [--json]

Each line is a verdict (ok, warn, fail, skip), what was checked, what was found, and how to mend it. Exit status: 0
nothing failed, 1 something did, 2 wrong use. Without a GPU the lines about it say so; the rest is checked on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from training.distributed import node_name
from training.smoke.check import Check
from training.smoke.exchange import all_reduce
from training.smoke.machine import cuda, disk, matrix_product, memory, versions


def run(checks: Mapping[str, Callable[[], Iterator[Check]]]) -> Iterator[Check]:
    """All of them, one after the other; one that cannot be done has failed."""
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            what = str(error).strip().splitlines() or [""]
            figure = f"{type(error).__name__}: {what[-1]}"
            yield Check(verdict="fail", name=name, figure=figure, fix="nothing can be trained here before this works")


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.smoke", description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path(), help="whose disk is measured; default: this one")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args(arguments)
    directory = options.directory.resolve()
    if not directory.is_dir():
        parser.error(f"{directory}: no such directory; give one that this user may write into")
    checks = {
        "torch": versions,
        "CUDA": cuda,
        "matrix product": matrix_product,
        "memory": memory,
        "all-reduce": all_reduce,
        "disk": lambda: disk(directory),
    }
    found = []
    for check in run(checks):
        found.append(check)
        if not options.json:
            print(check, flush=True)
    failed = any(check.verdict == "fail" for check in found)
    if options.json:
        content = {"node": node_name(), "failed": failed, "checks": [dataclasses.asdict(check) for check in found]}
        print(json.dumps(content, indent=2))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
