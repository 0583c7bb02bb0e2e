"""The fault matrix: `python -m tests.faults`, or `make faults`. README.md here explains its table."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from pathlib import Path

from tests.faults import matrix, report
from tests.faults.catalogue import FAULTS, chosen
from tests.faults.cluster import Cluster, own_lab
from tests.faults.data import FOLDER
from tests.faults.verdict import Row
from tests.labs import VM_PACKAGES, Lab

VM_LAB = {"patience": 2400, "variables": {"ANSIBLE_TIMEOUT": "60"}}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--faults", default="", metavar="A,B", help="only these (default: all; --list shows them)")
    parser.add_argument(
        "--moments", default="", metavar="A,B+C",
        help="only these of start, before, mid, save; B+C: one job is hit at B, and then at C",
    )  # fmt: skip
    parser.add_argument("--kind", choices=["container", "vm"], default="container", help="of the nodes")
    parser.add_argument("--layer", default="", metavar="TAR", help="for VM nodes, see lab/README.md")
    parser.add_argument("--lab", default="", metavar="NAME", help="this lab, up and provisioned; it is left as it is")
    parser.add_argument("--json", type=Path, default=FOLDER / "faults.json", metavar="FILE", help="(%(default)s)")
    parser.add_argument("--list", action="store_true", help="show the faults and run nothing")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{fault.number:>2}  {fault.name:<22}{fault.what}" for fault in FAULTS))
        return 0
    try:
        cases = chosen(options.faults, options.moments)
    except ValueError as error:
        parser.error(str(error))
    # Whoever ends it with a plain kill gets the nodes taken down, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows: list[Row] = []
    with cluster_of(options) as cluster:
        try:
            for row in matrix.run(cluster, cases):
                rows.append(row)
                show(row)
                options.json.write_text(report.document(rows, cluster), encoding="utf-8")
        finally:  # after Ctrl-C what is known by then
            print(report.table(rows), flush=True)
    return int(any(row.problems for row in rows))


def cluster_of(options: argparse.Namespace) -> contextlib.AbstractContextManager[Cluster]:
    if options.lab:
        return contextlib.nullcontext(Cluster(Lab(options.lab, **(VM_LAB if options.kind == "vm" else {}))))
    if options.kind == "container":
        return own_lab(Lab("faults"), options.kind)
    # With the environment on the disks beforehand the head need not keep it for the others: hours where it is emulated.
    layer = ["--layer", options.layer] if options.layer else []
    site = ["-e", "python_env_packages_path="] if layer else []
    return own_lab(Lab("faults", **VM_LAB), options.kind, ["--packages", VM_PACKAGES, *layer], site)


def show(row: Row) -> None:
    """While it runs: each case as it ends, with what else was seen."""
    print("  ".join(report.cells(row)), *row.problems, *row.notes, sep="\n    ", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
