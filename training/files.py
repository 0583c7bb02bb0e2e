"""Write files so that a crash at any moment leaves the old content or the new one, never a half."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT)  # what a disk says that has no room, or none for this account
PIECE = 8 << 20  # bytes read and written at once
HIDDEN = re.compile(r"\.(?:writing|removing)-.+-(?P<node>[^-]*)-(?P<pid>\d+)")


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


def wait_for_room(directory: Path, pause: float = 5.0) -> None:
    """Until something can be written to `directory`. While its disk is full no start could be recorded, and no failure:
    the workers would only die, again and again, and nobody could be told why.
    """
    full, probe = False, hidden_path(directory / "room", "writing")
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with probe.open("wb") as stream:
                stream.write(bytes(4096))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            if error.errno not in FULL:
                raise
            if not full:
                print(f"alarm: {directory} cannot be written to ({error.strerror}); waiting for room", flush=True)
            full = True
        else:
            if full:
                print(f"{directory} has room again", flush=True)
            return
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        time.sleep(pause)


def within(seconds: float, do: Callable[[], T]) -> T:
    """What `do` returns or raises. Errors: TimeoutError, an OSError, where that takes longer; what waits for a file
    system that does not answer cannot be ended, and goes with this process.
    """
    ended: list[tuple[T | None, BaseException | None]] = []

    def work() -> None:
        try:
            ended.append((do(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    value, error = ended[0]
    if error is not None:
        raise error
    return value


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces so that a checkpoint of many GB needs no memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hidden_path(path: Path, doing: str) -> Path:
    """A name beside `path` that readers overlook, with the node and process that is `writing` or `removing` it."""
    node = os.uname().nodename.replace("-", "_")
    return path.with_name(f".{doing}-{path.name}-{node}-{os.getpid()}")


def sweep(directory: Path) -> None:
    """Delete what killed processes left in `directory` under hidden names.

    What a living process of this machine is at stays. Of another machine nothing stays: whoever is still at it
    there fails with a missing file and tries again.
    """
    node = os.uname().nodename.replace("-", "_")
    for path in directory.iterdir():
        hidden = HIDDEN.fullmatch(path.name)
        if hidden and not (hidden["node"] == node and Path("/proc", hidden["pid"]).exists()):
            shutil.rmtree(path, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Delete a directory, first out of sight, so that a crash cannot leave half of it. Gone already is fine."""
    hidden = hidden_path(path, "removing")
    with contextlib.suppress(FileNotFoundError):
        path.rename(hidden)
        shutil.rmtree(hidden)


def publish(temporary: Path, target: Path) -> None:
    """Show the complete directory `temporary`, whose files are on disk, as `target`, in place of what is there."""
    fsync_directory(temporary)
    if target.exists():
        remove_directory(target)
    temporary.rename(target)
    fsync_directory(target.parent)


def mirror(source: Path, target: Path, sha256: Mapping[str, str]) -> None:
    """Copy the files that `sha256` names (name -> hex SHA-256) from the directory `source` to `target`.

    `target` appears as a whole, forced to disk and read back against the hashes, or not at all. All files of
    `source` are opened first, so it may be deleted meanwhile. Errors: OSError; ValueError when a hash differs.
    """
    temporary = hidden_path(target, "writing")
    with contextlib.ExitStack() as stack:
        streams = {name: stack.enter_context((source / name).open("rb")) for name in sha256}
        shutil.rmtree(temporary, ignore_errors=True)
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)  # finds nothing after the rename
        temporary.mkdir(parents=True)
        for name, stream in streams.items():
            with (temporary / name).open("wb") as copy:
                shutil.copyfileobj(stream, copy, PIECE)
                copy.flush()
                os.fsync(copy.fileno())
            if sha256_of(temporary / name) != sha256[name]:
                raise ValueError(f"{source / name}: does not match its hash; it was damaged or changed meanwhile")
        publish(temporary, target)
