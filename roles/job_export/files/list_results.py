"""List the results of a job with their hashes; prints one JSON object. Changes nothing. Only Python's own library.

Its argument is a JSON object: folder. The answer: files, each [path within the folder, bytes, SHA-256], and links, each
its path. Left out is what only the training needs (checkpoints, packed data, packages, the logs of TensorBoard) and
names that begin with a dot; but not what a script of somebody's own has written, in `output`.
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
    files, links = [], []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = name.parts[0] != "output" and any(part.startswith(".") for part in name.parts)
        if hidden or any(Path(name.parts[0]).match(pattern) for pattern in TRAINING):
            continue
        if path.is_symlink():
            links.append(str(name))
        elif path.is_file():
            files.append([str(name), path.stat().st_size, digest(path)])
    print(json.dumps({"files": files, "links": links}))


if __name__ == "__main__":
    main()
