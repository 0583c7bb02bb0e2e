"""What is copied to the nodes in one file each."""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path

from .place import ROOT

MARK = "complete"
OLD = 24 * 3600  # seconds; archives are made anew for each start


def archive(kind: str, files: Iterable[tuple[str, bytes | str, int]]) -> tuple[Path, str]:
    """Pack files (name, content, mode; a str is the target of a link) for the nodes. Return the archive and its hash:
    the same bytes for the same files, whenever and by whomever they are packed. ValueError: a name is taken.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        folders: set[Path] = set()
        for name, content, mode in files:
            # Named, or their rights would follow from the umask of whoever unpacks them.
            for folder in [*reversed(Path(name).parents)][1:]:
                if folder not in folders:
                    entry = tarfile.TarInfo(str(folder))
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    packed.addfile(entry)
                    folders.add(folder)
            if Path(name).parts[0] == MARK:
                raise ValueError(f"{name}: on the nodes a mark of Minos has the name {MARK}; call it something else")
            entry = tarfile.TarInfo(name)
            entry.mode = mode
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                packed.addfile(entry)
            else:
                entry.size = len(content)
                packed.addfile(entry, io.BytesIO(content))
        packed.addfile(tarfile.TarInfo(MARK))  # the last one: without it the archive was not unpacked whole
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:12]
    file = ROOT / "build" / f"{kind}-{digest}.tar"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(buffer.getvalue())
    for old in file.parent.glob(f"{kind}-*.tar"):  # another train.yml may be copying one of today's
        if old.stat().st_mtime < time.time() - OLD:
            old.unlink(missing_ok=True)
    return file, digest


def training_package() -> list[tuple[str, bytes | str, int]]:
    """The files of training/, which every job gets."""
    files = sorted((ROOT / "training").rglob("*.py"))
    return [(str(path.relative_to(ROOT)), path.read_bytes(), 0o644) for path in files]
