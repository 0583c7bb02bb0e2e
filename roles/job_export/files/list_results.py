"""List the results of a job with their hashes; prints one JSON object. Changes nothing. Only Python's own library.

Its argument is a JSON object: folder. The answer: files, each [path within the folder, bytes, SHA-256]. Left out is
what only the training needs: checkpoints, packed data, packages, the logs of TensorBoard, names that begin with a dot.
"""

import hashlib
import json
import sys
from pathlib import Path

TRAINING = ("checkpoints", "data", "packed-*", "packages-*", "prepared.json", "tensorboard", "stop-requested", "logs")


def digest(path):
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def main():
    folder = Path(json.loads(sys.argv[1])["folder"])
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        left_out = hidden or any(Path(name.parts[0]).match(pattern) for pattern in TRAINING)
        if left_out or path.is_symlink() or not path.is_file():
            continue
        files.append([str(name), path.stat().st_size, digest(path)])
    print(json.dumps({"files": files}))


if __name__ == "__main__":
    main()
