"""Write and delete files so that being killed half-way does no harm."""

import os
import shutil
from pathlib import Path

from lab.config import LabError


def write_atomically(path: Path, text: str, *, mode: int, owner: int = 0) -> None:
    """Whoever reads `path` sees the old text or the new one, never a part; never readable before its mode is set."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        os.fchown(descriptor, owner, -1)
        os.fchmod(descriptor, mode)
    temporary.rename(path)


def mount_points() -> list[str]:
    """As the kernel lists them; `Path.is_mount` does not see a directory that is mounted onto itself."""
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def refuse_mounts(root: Path) -> None:
    """Raise LabError where something is mounted below `root`: deleting would empty something of somebody else's."""
    for mount in mount_points():
        if mount.startswith(f"{root}/"):
            raise LabError(f"{mount} is mounted inside the lab's files: `umount {mount}` first")


def remove_tree(root: Path) -> None:
    """Delete a directory with all that is in it, if it is there."""
    refuse_mounts(root)
    if root.exists():
        shutil.rmtree(root)
