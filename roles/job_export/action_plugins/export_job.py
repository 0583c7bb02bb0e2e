"""Fetch the results of a job from the head to this machine, and check their hashes.

The folders of jobs are for the service user alone, so nothing that logs in as somebody else (sftp, rsync) can read
them: the pieces come the way that commands go.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import itertools
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "job_look"))

from job_view import document
from job_view.figures import size

PIECE = 4 << 20  # bytes fetched by one command
MOST = 200  # files named in one command, whose argument may have 128 KiB
SUMS = "SHA256SUMS"
SHOWN = 5


class Wanted(NamedTuple):
    """A file of the job: its path within the folder, its bytes, its SHA-256."""

    name: str
    size: int
    sha256: str


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def missing(folder: Path, files: Sequence[Wanted]) -> list[Wanted]:
    """Return the files that are not there yet, or are others. ValueError for a name that leads out of the folder."""
    for file in files:
        path = PurePosixPath(file.name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{file.name}: is no path within the job's folder; nothing was fetched")
    return [file for file in files if not _is_there(folder / file.name, file)]


def _is_there(path: Path, file: Wanted) -> bool:
    return path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256


def fetch(folder: Path, files: Sequence[Wanted], pieces: Iterator[bytes]) -> None:
    """Write `files` from the stream of `pieces`, one file behind the other; each appears whole and checked.

    ValueError for one that does not match its hash."""
    rest = b""
    for file in files:
        target, found, left = folder / file.name, hashlib.sha256(), file.size
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with part.open("wb") as stream:
            while left:
                rest = rest or next(pieces, b"")
                if not rest:
                    break
                now, rest = rest[:left], rest[left:]
                stream.write(now)
                found.update(now)
                left -= len(now)
        if found.hexdigest() != file.sha256:
            part.unlink()
            raise ValueError(f"{file.name}: what has arrived does not match its hash; the same command tries again")
        part.replace(target)


def foreign(folder: Path, files: Sequence[Wanted]) -> list[str]:
    """Return what lies there besides, such as the model of an earlier job of this name."""
    ours = {SUMS, *(file.name for file in files)}
    there = (str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in there if name not in ours)


def some(names: Sequence[str]) -> list[str]:
    """Return a few of them, and how many more there are."""
    return [*names[:SHOWN], *([f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else [])]


def piece_at(files: Sequence[Wanted], at: int) -> dict[str, Any]:
    """The files (name, bytes) from byte `at` of all on, as many as one command may name; and where in them that is."""
    begins = list(itertools.accumulate((file.size for file in files), initial=0))
    first = bisect.bisect_right(begins, at) - 1
    last = min(bisect.bisect_left(begins, at + PIECE), first + MOST)
    return {"files": [file[:2] for file in files[first:last]], "at": at - begins[first]}


class ActionModule(ActionBase):
    """Arguments: job, state, folder (its own on the head), files and links (of list_results.py), to, program
    (read_piece.py), python (there), output.
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        files = [Wanted(*each) for each in arguments["files"]]
        folder = Path(str(arguments["to"])).expanduser().absolute() / arguments["job"]
        try:
            wanted = missing(folder, files)
            fetch(folder, wanted, self._pieces(wanted))
            (folder / SUMS).write_text("".join(f"{file.sha256}  {file.name}\n" for file in files), encoding="utf-8")
        except (ValueError, OSError) as error:
            raise AnsibleActionFail(str(error)) from None
        total = sum(file.size for file in files)
        there = f", {len(files) - len(wanted)} of them were there" if len(wanted) < len(files) else ""
        ended = arguments["state"]
        none = ended != "done" and not any(file.name.startswith("model/") for file in files)
        model = f" There is no model: the job is {ended}." if none else ""
        text = f"{folder}: {len(files)} files, {size(total)}{there}; all match their hashes.{model}"
        others = foreign(folder, files)
        if others:
            text += f" Not of this job as it is now, and left there: {', '.join(some(others))}."
        if links := arguments["links"]:
            text += f" Links are not fetched: {', '.join(some(links))}."
        self._display.display(text)
        content = {"job": arguments["job"], "to": str(folder), "files": [file._asdict() for file in files]}
        content |= {"links": links, "others": others}
        document.write(str(arguments["output"]), "export", content)
        return result | {"changed": bool(wanted), "msg": text}

    def _pieces(self, files: Sequence[Wanted]) -> Iterator[bytes]:
        folder, program = self._task.args["folder"], Path(self._task.args["program"]).read_bytes()
        total, at = sum(file.size for file in files), 0
        while at < total:
            asked = {"folder": folder, "count": PIECE, **piece_at(files, at)}
            words = [self._task.args["python"], "-", json.dumps(asked)]
            done = self._low_level_execute_command(shlex.join(words), in_data=program)
            lines = done["stdout"].splitlines()
            if not lines or not lines[-1].startswith("{"):
                raise ValueError(f"the head does not give its files: {(done['stderr'] or 'without a word').strip()}")
            piece = base64.b64decode(json.loads(lines[-1])["piece"])
            if not piece:
                return
            at += len(piece)
            yield piece
