"""A hub on 127.0.0.1 that answers the real client of huggingface_hub; the real hub cannot be reached from tests.

It speaks what the client asks for a model: its facts and files, its tree, HEAD and GET of a file with the commit, the
size and the hash in the headers; large files are redirected to another path, as on the hub. The transfer by Xet is not
there: the client takes it only where a file's headers offer it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34
LARGE = 1000  # bytes from which a file is in large file storage


@dataclasses.dataclass
class Model:
    """What the hub has of one model, and how it behaves."""

    files: dict[str, bytes]
    gated: bool = False
    commit: str = COMMIT
    damaged: set[str] = dataclasses.field(default_factory=set)
    """Files whose content arrives changed although size and stated hash are right."""
    stall_after: int | None = None
    """Bytes of a large file after which the transfer stands still, until `Hub.go_on`, and the connection breaks."""


class Hub:
    """The server; `requests` are the method, path and Range header of all that was asked."""

    def __init__(self):
        self.models: dict[str, Model] = {}
        self.tokens = {"good-token": True, "stranger-token": False}  # token -> has access to what is gated
        self.requests: list[tuple[str, str, str | None]] = []
        self.stalled, self.go_on = threading.Event(), threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = request.path.partition("?")[0]
        self.requests.append((request.command, path, request.headers.get("Range")))
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            return self.send(request, 401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if path.startswith("/large/"):
            _, _, name, file = path.split("/", 3)
            return self.send_file(request, self.models[name.replace("--", "/")], file, body)
        api = re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/(\w+))?", path)
        found = re.fullmatch(r"/(.+?)/resolve/(\w+)/(.+)", path)
        if not (api or found):
            return self.send(request, 404, {})
        name = (api or found)[1]
        model = self.models.get(name)
        if model is None:
            return self.send(request, 404 if token else 401, {"X-Error-Code": "RepoNotFound"} if token else {})
        if api:
            content = tree_of(model) if api[2] == "tree" else facts_of(name, model)
            return self.send(request, 200, {"Content-Type": "application/json"}, json.dumps(content).encode())
        if model.gated and not self.tokens.get(token, False):
            return self.send(request, 403 if token else 401, {"X-Error-Code": "GatedRepo"})
        file = found[3]
        if file not in model.files:
            return self.send(request, 404, {"X-Error-Code": "EntryNotFound"})
        if len(model.files[file]) >= LARGE:
            place = f"{self.url}/large/{name.replace('/', '--')}/{file}"
            stated = {"X-Linked-Size": str(len(model.files[file])), "X-Linked-ETag": f'"{sha256(model.files[file])}"'}
            return self.send(request, 302, {"Location": place, "X-Repo-Commit": model.commit, **stated})
        return self.send_file(request, model, file, body)

    def send_file(self, request: BaseHTTPRequestHandler, model: Model, file: str, body: bool) -> None:
        content = model.files[file]
        tag = sha256(content) if len(content) >= LARGE else git_hash(content)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": model.commit, "Accept-Ranges": "bytes"}
        if file in model.damaged:
            content = bytes([content[0] ^ 1]) + content[1:]
        status, first = 200, 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or ""):
            status, first = 206, int(wanted[1])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        part = content[first:]
        if not body:
            return self.send(request, status, headers | {"Content-Length": str(len(part))})
        if model.stall_after is None or len(content) < LARGE:
            return self.send(request, status, headers, part)
        request.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(part))}).items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(part[: model.stall_after])
        request.wfile.flush()
        self.stalled.set()
        self.go_on.wait(60)
        request.close_connection = True
        return None

    @staticmethod
    def send(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        request.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            request.send_header(key, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def facts_of(name: str, model: Model) -> dict[str, object]:
    """What `/api/models/NAME?blobs=true` answers."""
    files = []
    for file, content in model.files.items():
        facts = {"rfilename": file, "size": len(content), "blobId": git_hash(content)}
        if len(content) >= LARGE:
            facts |= {"lfs": {"sha256": sha256(content), "size": len(content), "pointerSize": 130}}
        files.append(facts)
    return {"id": name, "modelId": name, "sha": model.commit, "private": False, "siblings": files, "tags": []}


def tree_of(model: Model) -> list[dict[str, object]]:
    """What `/api/models/NAME/tree/COMMIT?recursive=true` answers."""
    rows = []
    for file, content in model.files.items():
        row = {"type": "file", "path": file, "size": len(content), "oid": git_hash(content)}
        if len(content) >= LARGE:
            row["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
        rows.append(row)
    return rows
