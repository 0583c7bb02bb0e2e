"""Packed directories on disk: one maker at a time, complete or invisible, checked by the hashes of their manifest."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from training.data.packed import MANIFEST, read_manifest
from training.data.rows import DataError
from training.files import fsync_directory, fsync_file, sha256_of, write_atomically

LOCK = ".packed.lock"
TEMPORARY = ".packing-"
PIECE = 1 << 22  # bytes that are copied at a time


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the lock of `directory`, which is made; the end of a process frees it, whatever ended it.

    What killed holders left half made is deleted.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("a") as stream:
        if not _locked_soon(stream):
            print(f"waiting for another process that prepares data in {directory}", flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        for path in directory.glob(f"{TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)
        yield


def _locked_soon(stream: TextIO) -> bool:
    for _ in range(10):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1)
    return False


@contextlib.contextmanager
def out_of_sight(place: Path) -> Iterator[Path]:
    """A new directory that becomes `place` at the end of the block, or nothing if the block fails."""
    temporary = place.with_name(f"{TEMPORARY}{place.name}-{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        fsync_directory(temporary)
        temporary.rename(place)
        fsync_directory(place.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def discard(place: Path, reason: str) -> None:
    """Delete `place`, and say why."""
    print(f"{place}: {reason}", flush=True)
    hidden = place.with_name(f"{TEMPORARY}old-{place.name}-{os.getpid()}")
    place.rename(hidden)  # first out of sight, so that a crash cannot leave a half
    shutil.rmtree(hidden)


def problem_of(place: Path, memory: Path, like: Path | None = None) -> str | None:
    """Why the packed directory `place` cannot be trusted, None if it can; `like` has the same manifest then.

    Files that have the size and the time of change of the last check are not read again; that check is remembered in
    the directory `memory`.
    """
    try:
        hashes = read_manifest(place)["sha256"]
        if like and (place / MANIFEST).read_bytes() != (like / MANIFEST).read_bytes():
            return "is not the newest"
        if _recall(place, memory) == _stamps(place, hashes):
            return None
        for name, digest in hashes.items():
            if sha256_of(place / name) != digest:
                return f"{name} does not match the manifest"
    except DataError:
        return "has no manifest that can be read"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    remember(place, memory)
    return None


def remember(place: Path, memory: Path) -> None:
    """Note that the hashes of `place` were right just now."""
    stamps = _stamps(place, read_manifest(place)["sha256"])
    content = {"place": str(place.resolve()), "files": stamps}
    write_atomically(_note(place, memory), json.dumps(content, indent=1) + "\n")


def _recall(place: Path, memory: Path) -> dict[str, list[int]] | None:
    try:
        content = json.loads(_note(place, memory).read_text(encoding="utf-8"))
        return content["files"] if content["place"] == str(place.resolve()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(place: Path, memory: Path) -> Path:
    return memory / f".checked-{place.name}.json"


def _stamps(place: Path, names: dict[str, str]) -> dict[str, list[int]]:
    """Size in bytes and time of change in ns of each file."""
    status = {name: (place / name).stat() for name in (*names, MANIFEST)}
    return {name: [facts.st_size, facts.st_mtime_ns] for name, facts in status.items()}


def copy(place: Path, local: Path) -> None:
    """Copy a packed directory to `local`, which is not there yet, and check the hashes on the way.

    Errors: DataError (damaged, disk too small), OSError.
    """
    hashes = read_manifest(place)["sha256"]
    needed, free = sum((place / name).stat().st_size for name in hashes), shutil.disk_usage(local.parent).free
    if needed > free:
        fix = "free space there or write data_from_share=true"
        raise DataError(f"{local}: needs {needed / 1e9:.2f} GB for packed data, {free / 1e9:.2f} GB are free; {fix}")
    with out_of_sight(local) as temporary:
        for name, digest in hashes.items():
            if _copied(place / name, temporary / name) != digest:
                fix = "run `python -m training.prepare` again"
                raise DataError(f"{place / name}: does not match the manifest beside it; {fix}")
        _copied(place / MANIFEST, temporary / MANIFEST)


def _copied(source: Path, target: Path) -> str:
    """Copy one file to the disk; returns the hex SHA-256 of what was read."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        while piece := reader.read(PIECE):
            digest.update(piece)
            writer.write(piece)
    fsync_file(target)
    return digest.hexdigest()
