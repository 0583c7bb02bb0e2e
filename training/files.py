"""Write files so that a crash at any moment leaves the old content or the new one, never a half."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def fsync_directory(path: Path) -> None:
    """Make renames and new names in `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Force the content of `path` to the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` with `text` (UTF-8): temporary name, fsync, rename, fsync of the directory.

    The temporary name carries the process id, so two writers cannot mix their halves; the last rename wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    fsync_directory(path.parent)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces so that a checkpoint of many GB needs no memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
