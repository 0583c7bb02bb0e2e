"""Checkpoints that are complete or invisible.

`step-00000050/` holds model.pt, optimizer.pt, progress.json and manifest.json with the SHA-256 of the other
three. Written under a hidden temporary name, forced to disk, renamed, and the rename forced to disk. Readers
believe the manifest only: a directory without a matching one is skipped with a word, whatever its name says.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import torch

from training.files import fsync_directory, fsync_file, sha256_of

MANIFEST = "manifest.json"
HIDDEN = (".writing-", ".removing-")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used for this run; one line with the path and the fix."""


@dataclasses.dataclass(kw_only=True)
class Progress:
    """How far the run is; rank 0 puts its own into each checkpoint, all ranks go on from it."""

    step: int = 0
    samples: int = 0
    epoch_loss: float = 0.0
    epoch_tokens: float = 0.0
    train_seconds: float = 0.0
    heldout_first: float | None = None
    heldout_last: float | None = None
    fingerprint: dict[str, object] = dataclasses.field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run under `directory`. Only rank 0 calls `save` and `newest`; every rank may
    `load`.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory = Path(directory)
        self.keep = keep
        # Names hashed or written by this process: reading many GB once is enough.
        self._verified: set[str] = set()

    def path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def save(self, step: int, model: dict, optimizer: dict, progress: Progress) -> Path:
        """Write `step`, then delete what is older than the newest `keep` valid ones. Errors: OSError (disk
        full).
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._sweep()
        temporary = self.directory / f"{HIDDEN[0]}{step:08d}-{os.getpid()}"
        temporary.mkdir()
        torch.save(model, temporary / "model.pt")
        torch.save(optimizer, temporary / "optimizer.pt")
        (temporary / "progress.json").write_text(
            json.dumps(dataclasses.asdict(progress), indent=2, sort_keys=True) + "\n"
        )
        names = sorted(file.name for file in temporary.iterdir())
        for name in names:
            fsync_file(temporary / name)
        manifest = {"step": step, "sha256": {name: sha256_of(temporary / name) for name in names}}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        fsync_file(temporary / MANIFEST)
        fsync_directory(temporary)
        final = self.path(step)
        if final.exists():  # a damaged one, or the same state once more
            self._remove(final)
        temporary.rename(final)
        fsync_directory(self.directory)
        self._verified.add(final.name)
        self._prune()
        return final

    def newest(self) -> int | None:
        """Step of the newest valid checkpoint, None without any; says which ones it skips and why."""
        for path in self._visible():
            problem = self._problem(path)
            if problem is None:
                return int(path.name.removeprefix("step-"))
            print(f"checkpoint {path} skipped: {problem}", flush=True)
        return None

    def load(self, step: int, device: torch.device, wait: float = 60.0) -> tuple[dict, dict, Progress]:
        """(model, optimizer, progress) of `step`, checked against the manifest, tensors on `device`.

        Waits up to `wait` seconds for files that another node wrote: NFS clients see them late.
        Errors: CheckpointError when they do not become valid.
        """
        path = self.path(step)
        deadline = time.monotonic() + wait
        while problem := self._problem(path):
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"{path}: {problem} after {wait:.0f} s; is the job directory the same on all nodes?"
                )
            time.sleep(0.5)
            list(self.directory.iterdir())  # makes an NFS client ask the server what is there now
        model, optimizer = (
            torch.load(path / name, map_location=device, weights_only=True) for name in ("model.pt", "optimizer.pt")
        )
        return model, optimizer, Progress(**json.loads((path / "progress.json").read_text()))

    def _visible(self) -> list[Path]:
        return sorted(self.directory.glob("step-[0-9]*"), key=lambda path: path.name, reverse=True)

    def _problem(self, path: Path) -> str | None:
        """Why this checkpoint cannot be trusted; None if it can."""
        if path.name in self._verified:
            return None
        try:
            hashes = json.loads((path / MANIFEST).read_text())["sha256"]
            missing = {"model.pt", "optimizer.pt", "progress.json"} - set(hashes)
            if missing:
                return f"the manifest does not name {', '.join(sorted(missing))}"
            for name, digest in hashes.items():
                if sha256_of(path / name) != digest:
                    return f"{name} does not match the manifest"
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is missing"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"the manifest cannot be used ({type(error).__name__})"
        self._verified.add(path.name)
        return None

    def _prune(self) -> None:
        """Keep the newest `keep` VALID ones; a damaged one neither counts nor protects anything."""
        valid = [path for path in self._visible() if self._problem(path) is None]
        for path in self._visible():
            if path not in valid[: self.keep]:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        hidden = self.directory / f"{HIDDEN[1]}{path.name}-{os.getpid()}"
        path.rename(hidden)  # first out of sight, so that a crash cannot leave half a step-N
        self._verified.discard(path.name)
        shutil.rmtree(hidden)

    def _sweep(self) -> None:
        """Delete what killed processes left under hidden names."""
        for path in self.directory.iterdir():
            if path.name.startswith(HIDDEN):
                shutil.rmtree(path, ignore_errors=True)
