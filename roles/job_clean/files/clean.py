"""Remove old checkpoints of jobs in one directory, or whole jobs; prints one JSON object. Imports training's storage.

Its argument is a JSON object: jobs_path (<shared>/jobs, or <state>/jobs on a node's own disk), jobs (names), keep (how
many valid checkpoints stay in each directory), everything (the whole folder goes), look_only (change nothing). The
answer: removed (job -> what goes, paths within its folder; a whole job is "."), kept (job -> what stays), bytes, notes,
changed.

What is damaged goes too, but never the last valid one, nor what only cannot be read now; where none is valid nothing
goes.
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


def remove(path, whole_job):
    """Of a job its state goes last: without it the same command would not find what is left of one."""
    if not whole_job:
        remove_directory(path)
        return
    for child in path.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != "state.json":
            child.unlink()
    shutil.rmtree(path)


def clean(folder, asked):
    """What goes of one job, what stays, the bytes of it, and what is to be said."""
    goes, kept, gone, notes, freed = [], [], [], [], 0
    try:
        if asked["everything"]:
            goes = [folder]
        for directory in [] if asked["everything"] else directories(folder):
            valid, unread, rest = Steps(directory).sorted_out(asked["keep"])
            if not valid:
                notes.append(f"{directory}: holds no valid checkpoint, and so nothing of it goes")
            goes += rest if valid else []
            kept += [str(path.relative_to(folder)) for path in unread + valid + ([] if valid else rest)]
    except OSError as error:
        return [], [], 0, [*notes, f"{error.filename or folder}: {error.strerror or error}; nothing of it goes"]
    for path in goes:
        try:
            taken = size(path)
            if not asked["look_only"]:
                remove(path, whole_job=path == folder)
        except OSError as error:  # what others keep open, or is not ours; the rest goes all the same
            notes.append(f"{error.filename or path}: {error.strerror or error}; what is left stays")
            continue
        freed += taken
        gone.append(str(path.relative_to(folder)))
    return gone, kept, freed, notes


def main():
    asked = json.loads(sys.argv[1])
    answer = {"removed": {}, "kept": {}, "bytes": 0, "notes": []}
    for name in asked["jobs"]:
        folder = Path(asked["jobs_path"], name)
        if folder.is_symlink() or not folder.is_dir() or folder.parent != Path(asked["jobs_path"]):
            continue
        gone, kept, freed, notes = clean(folder, asked)
        answer["removed"] |= {name: gone} if gone else {}
        answer["kept"] |= {name: kept} if kept else {}
        answer["bytes"] += freed
        answer["notes"] += notes
    print(json.dumps(answer | {"changed": bool(answer["removed"]) and not asked["look_only"]}))


if __name__ == "__main__":
    main()
