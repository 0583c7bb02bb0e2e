"""A directory of checkpoints that are complete or invisible.

`step-00000050/` holds the files of one checkpoint and manifest.json with their SHA-256. It is written under a hidden
name, forced to disk and renamed. Readers believe the manifest only: a directory without a matching one is skipped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from training.files import mirror, remove_directory, sha256_of, sweep

MANIFEST = "manifest.json"
PROGRESS, TREES = "progress.json", "trees.pt"  # there in each, beside one NAME.safetensors per saved object
SPARE = 16 << 20  # bytes beside the checkpoint itself that must stay free: manifest, directories, metrics


class NoRoom(OSError):
    """The disk has not enough room for a checkpoint; one line with the figures and the fix."""


class Steps:
    """The checkpoints under `directory`, which need not be there yet. One process at a time writes."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        # What was hashed or written by this process, with the sizes and times that its files had: once is enough.
        self._verified: dict[str, tuple] = {}
        self._unread: set[str] = set()  # could not be read when they were looked at last: that is no proof of damage

    def path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def visible(self) -> list[Path]:
        """All of them, the newest first, valid or not."""
        paths = self.directory.glob("step-*") if self.directory.is_dir() else ()
        return sorted((path for path in paths if path.name[5:].isdecimal()), key=step_of, reverse=True)

    def manifest(self, path: Path) -> dict[str, object]:
        """Its manifest. Errors: OSError, ValueError (one that we did not write)."""
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        hashes = manifest.get("sha256") if isinstance(manifest, dict) else None
        if not isinstance(hashes, dict) or not {PROGRESS, TREES} <= set(hashes):
            raise ValueError(f"it does not name {PROGRESS} and {TREES}")
        return manifest

    def problem(self, path: Path) -> str | None:
        """Why this checkpoint cannot be trusted; None if it can. Reads all of it unless that was done before."""
        self._unread.discard(path.name)
        try:
            manifest = self.manifest(path)
            look = _look_of(path, manifest)
            if self._verified.get(path.name) == look:
                return None
            for name, digest in manifest["sha256"].items():
                if sha256_of(path / name) != digest:
                    return f"{name} does not match the manifest"
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is missing"
        except ValueError as error:
            return f"the manifest cannot be used ({error})"
        except OSError as error:  # a share that does not answer, a bad sector: tomorrow it may be read
            self._unread.add(path.name)
            return f"it cannot be read ({error})"
        self._verified[path.name] = look
        return None

    def trust(self, path: Path) -> None:
        """Take a checkpoint that this process has just written for valid without reading it again."""
        self._verified[path.name] = _look_of(path, self.manifest(path))

    def size(self, path: Path) -> int:
        """Bytes of the files of a checkpoint, 0 for one that is going away."""
        try:
            return sum(file.stat().st_size for file in path.iterdir())
        except OSError:
            return 0

    def make_room(self, needed: int) -> list[str]:
        """See to it that `needed` bytes fit, before anything is written; returns the names that had to go.

        Where too little is free, old checkpoints go if that helps, but never the newest valid one, nor a newer one
        that cannot be read now: with a disk for two, holding one for a while beats never saving again. Errors: NoRoom.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        sweep(self.directory)
        free = self._free()
        if free >= needed + SPARE:
            return []
        valid = [path for path in self.visible() if self.problem(path) is None]
        unread = [path for path in self.visible() if path.name in self._unread]
        damaged = [path for path in self.visible() if path not in valid + unread]
        older_unread = [path for path in unread if valid and step_of(path) < step_of(valid[0])]
        others, removed = damaged + older_unread[::-1] + valid[:0:-1], []
        if free + sum(map(self.size, others)) >= needed + SPARE:
            for path in others:
                remove_directory(path)
                removed.append(path.name)
                if self._free() >= needed + SPARE:
                    return removed
        sizes = f"{needed / 1e6:.0f} MB are needed and {self._free() / 1e6:.0f} MB are free"
        raise NoRoom(f"{self.directory}: the disk is full, {sizes}; make room, the next save tries again")

    def sorted_out(self, keep: int) -> tuple[list[Path], list[Path], list[Path]]:
        """The newest `keep` VALID ones, what is newer than the last of them and cannot be read now, and the rest: a
        damaged one neither counts nor protects anything. Each the newest first.
        """
        valid, unread, rest = [], [], []
        for path in self.visible():
            if len(valid) < keep and self.problem(path) is None:
                valid.append(path)
            elif len(valid) == keep or path.name not in self._unread:
                rest.append(path)
            else:
                unread.append(path)
        return valid, unread, rest

    def prune(self, keep: int) -> None:
        """Keep the newest `keep` valid ones, and what cannot be read now."""
        for path in self.sorted_out(keep)[2]:
            self._verified.pop(path.name, None)
            remove_directory(path)

    def receive(self, source: Path, keep: int) -> Path:
        """Copy the checkpoint `source` from another directory to this one, unless it is there; then prune.

        Errors: OSError (NoRoom among them); ValueError when `source` does not match its manifest.
        """
        target = self.path(step_of(source))
        if self.problem(target) is not None:
            self.make_room(self.size(source))
            hashes = self.manifest(source)["sha256"]
            mirror(source, target, hashes | {MANIFEST: sha256_of(source / MANIFEST)})
            self.trust(target)
        self.prune(keep)
        return target

    def _free(self) -> int:
        disk = os.statvfs(self.directory)
        return disk.f_bavail * disk.f_frsize


def _look_of(path: Path, manifest: dict) -> tuple:
    """Sizes and times of a checkpoint's files: while they stay, so does their content."""
    looks = [(path / name).stat() for name in (MANIFEST, *manifest["sha256"])]
    return tuple((look.st_size, look.st_mtime_ns) for look in looks)


def step_of(path: Path) -> int:
    """The number in the name of a checkpoint."""
    return int(path.name.removeprefix("step-"))
