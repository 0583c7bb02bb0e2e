"""Read a piece of some files, taken as one after the other; prints one JSON object. Only Python's own library.

Its argument is a JSON object: folder, files (each [path within it, bytes]), at, count (bytes). The answer: piece, in
base64.
"""

import base64
import json
import sys
from pathlib import Path


def main():
    asked = json.loads(sys.argv[1])
    at, left, piece = asked["at"], asked["count"], b""
    for name, size in asked["files"]:
        if at < size and left:
            with Path(asked["folder"], name).open("rb") as stream:
                stream.seek(at)
                part = stream.read(min(left, size - at))
            piece, left = piece + part, left - len(part)
        at = max(0, at - size)
    print(json.dumps({"piece": base64.b64encode(piece).decode()}))


if __name__ == "__main__":
    main()
