"""The process that writes checkpoints: from the memory that the training process copied them to, onto the disk.

    python -m training.storage.writer MEMORY DIRECTORY KEEP

MEMORY is the number of an open file (memfd) that the training process fills. Each line on standard input is an order,
{"step", "files": [[name, offset, bytes], ...]}; the answer is {"saved": step, ...} or {"failed": step,
"reason"}. Nothing that goes wrong with the disk ends this process: the next order is tried anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

from training.files import PIECE, fsync_file, hidden_path, publish
from training.storage.child import answer
from training.storage.steps import MANIFEST, Steps


def write_range(memory: int, offset: int, size: int, file: Path) -> str:
    """Write `size` bytes of the memory from `offset` on to `file`, on disk; returns their hex SHA-256."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(min(size, PIECE)))
    with file.open("wb") as stream:
        for at in range(0, size, PIECE):
            part = piece[: min(PIECE, size - at)]
            if os.preadv(memory, [part], offset + at) != len(part):
                raise OSError(f"{file.name}: the copy in memory is shorter than ordered")
            digest.update(part)
            stream.write(part)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def write(steps: Steps, memory: int, order: dict) -> list[str]:
    """Write one checkpoint, unless a valid one of this step is there; returns the names that had to go for it."""
    target = steps.path(order["step"])
    if steps.problem(target) is None:
        return []
    removed = steps.make_room(sum(size for _, _, size in order["files"]))
    temporary = hidden_path(target, "writing")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)  # finds nothing after the rename
        temporary.mkdir()
        hashes = {name: write_range(memory, offset, size, temporary / name) for name, offset, size in order["files"]}
        manifest = {"step": order["step"], "sha256": hashes}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        fsync_file(temporary / MANIFEST)
        publish(temporary, target)
    steps.trust(target)
    return removed


def main() -> None:
    memory, keep = int(sys.argv[1]), int(sys.argv[3])
    steps = Steps(Path(sys.argv[2]))
    for line in sys.stdin:
        order, began = json.loads(line), time.monotonic()
        try:
            removed = write(steps, memory, order)
        except OSError as error:
            answer(failed=order["step"], reason=str(error))
            continue
        note = f"no room for {keep + 1}: {', '.join(removed)} went before its time" if removed else ""
        try:
            steps.prune(keep)
        except OSError as error:
            note = f"old checkpoints cannot be deleted: {error}"
        answer(saved=order["step"], seconds=time.monotonic() - began, note=note)


if __name__ == "__main__":
    main()
