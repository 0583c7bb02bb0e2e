"""`python3 -m lab.packages ADDRESS PORT DIRECTORY ...`: the host's folders of Python packages, read-only on the LAN.

A container node sees such a folder at the same path; a VM node has only its network.
"""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = 8099


def url(gateway: str, directory: str) -> str:
    return f"http://{gateway}:{PORT}{directory.rstrip('/')}/"


class Handler(SimpleHTTPRequestHandler):
    """The paths are those of the host, but only what lies in one of the folders, links followed, is there."""

    def __init__(self, *arguments, folders: list[Path], **more):
        self._folders = folders
        super().__init__(*arguments, directory="/", **more)

    def translate_path(self, path: str) -> str:
        wanted = Path(super().translate_path(path)).resolve()
        inside = any(wanted.is_relative_to(folder) for folder in self._folders)
        # With its slash at the end: http.server uses it to redirect to the one that relative links need.
        return f"{wanted}{'/' * path.endswith('/')}" if inside else "/nonexistent"

    def log_message(self, *_: object) -> None:
        pass


def main(address: str, port: str, *folders: str) -> None:
    handler = partial(Handler, folders=[Path(folder).resolve() for folder in folders])
    ThreadingHTTPServer((address, int(port)), handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
