"""What a node runs with, and in what nodes differ: two versions of a package train wrong weights, or hang.

`python -m training.parity` prints this node's facts as JSON; playbooks/parity.yml compares them over all nodes, and the
ranks of a job do so before their first collective. Nothing but the standard library is imported, so that it can be
sent to a node as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import sysconfig
from collections.abc import Mapping
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/version")
SHOWN = 20  # differences of one node; the others are counted


def describe(*, code: Path | None = None, config: Path | None = None) -> dict[str, str]:
    """What this process runs with: what -> version or short hash, in an order that is good to read.

    Packages count by the hashes of their files that the installer wrote down, which takes 0.1 s for a hundred of them;
    the files themselves would take a minute. `code` is the folder of the training package, `config` a file.
    Errors: OSError when one of the two cannot be read.
    """
    # Without the last number: the distributions' own differ in it, and it changes nothing that is computed.
    version = ".".join(platform.python_version_tuple()[:2])
    facts = {"python": f"{version} {platform.python_implementation()} {platform.machine()}"}
    if cuda := _cuda_of_torch():
        facts["cuda"] = cuda
    if DRIVER.exists():
        found = re.search(r"\b\d+(\.\d+)+", DRIVER.read_text(encoding="utf-8"))
        facts["driver"] = found[0] if found else "unknown"
    facts |= _packages()
    if code:
        facts |= {f"code {file.relative_to(code)}": short(file.read_bytes()) for file in sorted(code.rglob("*.py"))}
    if config:
        facts["config"] = short(config.read_bytes())
    return facts


def short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _cuda_of_torch() -> str:
    """The CUDA that torch was built for; "" for none. Importing torch would take seconds."""
    found = importlib.util.find_spec("torch")
    if not found or not found.origin:
        return ""
    version = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    cuda = re.search(r"^cuda\b.*=\s*'([\d.]+)'", version, re.MULTILINE)
    return cuda[1] if cuda else ""


def _packages() -> dict[str, str]:
    packages: dict[str, str] = {}
    # Not all of sys.path: what is imported on the way, such as setuptools, lengthens it in some processes.
    places = list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))
    for distribution in importlib.metadata.distributions(path=places):
        name = re.sub(r"[-_.]+", "-", distribution.name or "unnamed").lower()
        # Not what an installer adds of its own: scripts with the path of Python, who installed it, compiled files.
        files = [
            line
            for line in (distribution.read_text("RECORD") or "").splitlines()
            if not re.match(r"\.\./|.*\.dist-info/(?!METADATA)|.*\.pyc,", line)
        ]
        packages.setdefault(f"package {name}", f"{distribution.version} {short(chr(10).join(sorted(files)).encode())}")
    return dict(sorted(packages.items()))


def compare(nodes: Mapping[str, Mapping[str, str]]) -> tuple[str, list[str]]:
    """In what nodes differ from the first one: a sentence and the lines of a table; ("", []) when they do not.

    `nodes` maps each name to what `describe` said there.
    """
    standard, names = dict(next(iter(nodes.values()))), list(nodes)
    if "driver" not in standard:
        drivers = [f"{facts['driver']} on {name}" for name, facts in nodes.items() if "driver" in facts]
        standard |= {"driver": drivers[0]} if drivers else {}
    blocks: dict[str, list[str]] = {}
    for name in names[1:]:
        if rows := _differences(standard, nodes[name]):
            blocks.setdefault(json.dumps(rows), []).append(name)
    if not blocks:
        return "", []
    kinds: dict[str, None] = {}
    table: list[str] = []
    for encoded, alike in blocks.items():
        rows = json.loads(encoded)
        kinds |= dict.fromkeys(what for what, _, _ in rows)
        shown = [("", names[0], ", ".join(alike)), *rows[:SHOWN]]
        widths = [max(len(row[column]) for row in shown) for column in (0, 1)]
        table += [f"{what:{widths[0]}}  {here:{widths[1]}}  {there}".rstrip() for what, here, there in shown]
        table += [f"and {len(rows) - SHOWN} more"] * (len(rows) > SHOWN)
    different = ", ".join(name for alike in blocks.values() for name in alike)
    in_what = ", ".join(list(kinds)[:3]) + (f" and {len(kinds) - 3} more" if len(kinds) > 3 else "")
    verb = "does" if different in nodes else "do"
    return f"{different} {verb} not run the same as {names[0]}: {in_what}", table


def _differences(standard: Mapping[str, str], facts: Mapping[str, str]) -> list[tuple[str, str, str]]:
    rows = []
    for what in dict.fromkeys([*standard, *facts]):
        here, there = standard.get(what, "-"), facts.get(what, "-")
        # A machine without a GPU, such as a head that only keeps the store, has no driver to differ.
        alike = there in ("-", here.partition(" on ")[0]) if what == "driver" else here == there
        if not alike:
            rows.append((what, here, there))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m training.parity", description="What this node runs with.")
    parser.add_argument("--code", type=Path, help="folder of the training package")
    parser.add_argument("--config", type=Path, help="a job's config")
    print(json.dumps(describe(**vars(parser.parse_args()))))
