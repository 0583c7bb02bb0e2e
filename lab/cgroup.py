"""A control group per node, so that a pulled plug ends all its processes at once.

Where systemd runs the host, it makes the group (a scope of its own in the lab's slice); elsewhere the
lab makes it by hand in each hierarchy that systemd-nspawn uses.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lab import process


def systemd_runs_here() -> bool:
    """sd_booted(3): the documented test for systemd as the init of this host."""
    return Path("/run/systemd/system").is_dir()


def _slice(lab: str) -> str:
    return f"minos_lab_{lab}.slice"  # no hyphen: that would mean a slice within a slice


def scope(lab: str, unit: str) -> list[str]:
    """What to write before a command so that it outlives the login session that starts it."""
    if not systemd_runs_here():
        return []
    return ["systemd-run", "--scope", "--quiet", "--collect", f"--slice={_slice(lab)}",
            f"--unit=minos-lab-{lab}-{unit}-{time.monotonic_ns()}", "--property=Delegate=yes", "--"]  # fmt: skip


def hierarchies() -> list[Path]:
    """Mount points of cgroup v2 and of v1's name=systemd, of those that can be written."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options = line.split()[:4]
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            found.append(Path(where))
    return [path for path in found if os.access(path, os.W_OK)]


def make(lab: str, node: str) -> list[Path]:
    """The node's groups, made by hand; none where systemd makes them."""
    if systemd_runs_here():
        return []
    groups = [hierarchy / f"minos-lab.{lab}" / node for hierarchy in hierarchies()]
    for group in groups:
        group.mkdir(parents=True, exist_ok=True)
    return groups


def enter(groups: list[Path]) -> None:
    """Move the calling process into the groups."""
    for group in groups:
        (group / "cgroup.procs").write_text(str(os.getpid()))


def _ours(lab: str, node: str | None) -> Iterator[Path]:
    """The top groups of the lab, or of one node, that exist."""
    for hierarchy in hierarchies():
        if systemd_runs_here():
            pattern = f"minos-lab-{lab}-{node}-*.scope" if node else "*.scope"
            yield from (hierarchy / _slice(lab)).glob(pattern)
        else:
            group = hierarchy / f"minos-lab.{lab}" / (node or "")
            if group.is_dir():
                yield group


def kill(lab: str, node: str | None = None) -> None:
    """SIGKILL to every process of a node (None: of the lab) in one step, where the kernel has it (Linux 5.14)."""
    for group in _ours(lab, node):
        with contextlib.suppress(FileNotFoundError):
            if (group / "cgroup.kill").exists():
                (group / "cgroup.kill").write_text("1")


def remove(lab: str, node: str | None = None) -> None:
    """Remove the empty groups of a node, None: of the whole lab."""
    if systemd_runs_here():
        if node is None:
            process.run(lab, "systemctl", "stop", _slice(lab), check=False)
        return
    for top in _ours(lab, node):
        for directory, _, _ in os.walk(top, topdown=False):
            _remove_when_empty(Path(directory))


def _remove_when_empty(group: Path, patience: float = 5.0) -> None:
    """A killed process leaves its group a moment after it is gone from sight."""
    deadline = time.monotonic() + patience
    while True:
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
