"""Remove old checkpoints of jobs in one directory, or whole jobs; prints one JSON object. Imports training's storage.

Its argument is a JSON object: jobs_path (<shared>/jobs, or <state>/jobs on a node's own disk), jobs (names), keep (how
many valid checkpoints stay in each directory), everything (the whole folder goes), look_only (change nothing). The
answer: removed (job -> what goes, paths within its folder; a whole job is "."), kept (job -> what stays), bytes, notes,
changed.

What is damaged goes too, but never the last valid one; where none is valid nothing goes.
"""

import json
import shutil
import sys
from pathlib import Path

from training.files import remove_directory
from training.storage.steps import Steps


def size(path):
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir() or file.is_symlink())


def directories(folder):
    """Where a job keeps checkpoints: one directory on the share, and one for each of its lives on a node's disk."""
    checkpoints = folder / "checkpoints"
    found = (checkpoints, *sorted(checkpoints.glob("*")))
    return [path for path in found if path.is_dir() and any(path.glob("step-*"))]


def old(steps, keep):
    """What may go from a directory, and what stays."""
    stays, goes = [], []
    for path in steps.visible():
        (stays if len(stays) < keep and steps.problem(path) is None else goes).append(path)
    return (goes, stays) if stays else ([], goes)


def main():
    asked = json.loads(sys.argv[1])
    look_only, removed, kept, notes, freed = asked["look_only"], {}, {}, [], 0
    for name in asked["jobs"]:
        folder = Path(asked["jobs_path"], name)
        if folder.is_symlink() or not folder.is_dir() or folder.parent != Path(asked["jobs_path"]):
            continue
        if asked["everything"]:
            goes = [folder]
        else:
            goes = []
            for directory in directories(folder):
                away, stays = old(Steps(directory), asked["keep"])
                if stays and Steps(directory).problem(stays[0]) is not None:
                    notes.append(f"{directory}: holds no valid checkpoint, and so nothing of it goes")
                goes += away
                kept.setdefault(name, []).extend(str(path.relative_to(folder)) for path in stays)
        for path in goes:
            freed += size(path)
            removed.setdefault(name, []).append(str(path.relative_to(folder)))
            if look_only:
                continue
            if path == folder:
                shutil.rmtree(folder)
            else:
                remove_directory(path)
    changed = bool(removed) and not look_only
    print(json.dumps({"removed": removed, "kept": kept, "bytes": freed, "notes": notes, "changed": changed}))


if __name__ == "__main__":
    main()
