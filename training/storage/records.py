"""Brings the record files of a run (metrics, TensorBoard, plots) from this machine's disk to the shared directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from training.files import hidden_path


class Records:
    """The files under `source` and their copies under `target`.

    Of a record file that is appended to only what was added travels, as long as it is the same file and its copy ends
    where we left it. All others are replaced as a whole by a rename, and a disk soon gives the new file the number of
    an old one. Names that begin with a dot are nobody's business yet.
    """

    def __init__(self, source: Path, target: Path):
        self.source, self.target = source, target
        self._brought: dict[Path, os.stat_result] = {}

    def bring(self) -> None:
        """Copy what has changed. Errors: OSError; what was brought before it stays known."""
        for file in sorted(self.source.rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                self._bring(file, self.target / file.relative_to(self.source))

    def _bring(self, file: Path, copy: Path) -> None:
        before = self._brought.get(file)
        with file.open("rb") as stream:
            now = os.fstat(stream.fileno())
            if before and (before.st_ino, before.st_size, before.st_mtime_ns) == look_of(now):
                return
            grown = is_appended_to(file) and before and before.st_ino == now.st_ino and before.st_size < now.st_size
            if grown and copy.exists() and copy.stat().st_size == before.st_size:
                with copy.open("ab") as end:
                    stream.seek(before.st_size)
                    _finish(stream.read(now.st_size - before.st_size), end, now)
            else:
                copy.parent.mkdir(parents=True, exist_ok=True)
                temporary = hidden_path(copy, "writing")
                with temporary.open("wb") as whole:
                    _finish(stream.read(now.st_size), whole, now)
                temporary.replace(copy)
        self._brought[file] = now


def is_appended_to(file: Path) -> bool:
    return file.suffix == ".jsonl" or ".tfevents." in file.name


def _finish(content: bytes, stream, look: os.stat_result) -> None:
    """Write `content`, force it to disk, and give the copy the time of its original: the newer one is the better."""
    stream.write(content)
    stream.flush()
    os.fsync(stream.fileno())
    os.utime(stream.fileno(), ns=(look.st_atime_ns, look.st_mtime_ns))


def look_of(stat: os.stat_result) -> tuple[int, int, int]:
    """What tells one content of a file from the next."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def recall(shared: Path, own: Path) -> None:
    """Copy the record file `shared` to `own`, unless it is missing or `own` is as new: rank 0 moves between nodes."""
    if not shared.exists() or (own.exists() and own.stat().st_mtime_ns >= shared.stat().st_mtime_ns):
        return
    own.parent.mkdir(parents=True, exist_ok=True)
    temporary = hidden_path(own, "writing")
    shutil.copy2(shared, temporary)
    temporary.replace(own)
