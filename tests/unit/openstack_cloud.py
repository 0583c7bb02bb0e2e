"""A cloud of its own on loopback: the little of Keystone and Nova that is asked for a list of servers.

Written from the API reference at https://docs.openstack.org/api-ref (identity v3, compute v2.1). Whoever says that his
password is `right` comes in.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "token-of-the-test"


def server(name: str, *, fixed: str, floating: str = "", minos: str = "", network: str = "lan") -> dict:
    """A server as Nova describes it."""

    def address(addr: str, kind: str) -> dict:
        return {"version": 4, "addr": addr, "OS-EXT-IPS:type": kind, "OS-EXT-IPS-MAC:mac_addr": "fa:16:3e:00:00:01"}

    addresses = [address(fixed, "fixed")] + [address(floating, "floating")] * bool(floating)
    return {
        "id": f"id-of-{name}",
        "name": name,
        "status": "ACTIVE",
        "metadata": {"minos": minos} if minos else {},
        "addresses": {network: addresses},
        "flavor": {"id": "1", "links": []},
        "image": {"id": "2", "links": []},
        "OS-EXT-AZ:availability_zone": "nova",
        "security_groups": [{"name": "default"}],
        "links": [],
    }


@contextlib.contextmanager
def running(servers: list[dict]) -> Iterator[str]:
    """Serve until the block ends; gives Keystone's URL."""

    class Cloud(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        @property
        def base(self) -> str:
            return f"http://127.0.0.1:{self.server.server_port}"

        def answer(self, content: dict, status: int = 200, **headers: str) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            user = asked["auth"]["identity"]["password"]["user"]
            if user["password"] != "right":
                said = "The request you have made requires authentication."
                self.answer({"error": {"code": 401, "message": said, "title": "Unauthorized"}}, 401)
                return
            endpoints = [
                {"interface": "public", "region": "one", "region_id": "one", "id": "e", "url": f"{self.base}/{path}"}
                for path in ("v3", "compute/v2.1")
            ]
            catalog = [
                {"type": kind, "name": name, "id": kind, "endpoints": [endpoint]}
                for (kind, name), endpoint in zip(
                    [("identity", "keystone"), ("compute", "nova")], endpoints, strict=True
                )
            ]
            token = {
                "methods": ["password"],
                "user": {"id": "u", "name": user["name"], "domain": {"id": "default", "name": "Default"}},
                "project": {"id": "p", "name": "demo", "domain": {"id": "default", "name": "Default"}},
                "issued_at": "2026-01-01T00:00:00.000000Z",
                "expires_at": "2099-01-01T00:00:00.000000Z",
                "catalog": catalog,
                "roles": [{"id": "r", "name": "member"}],
            }
            self.answer({"token": token}, 201, X_Subject_Token=TOKEN)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].rstrip("/")
            if path == "/v3":
                link = [{"rel": "self", "href": f"{self.base}/v3/"}]
                self.answer({"version": {"id": "v3.14", "status": "stable", "links": link, "media-types": []}})
            elif path == "/compute/v2.1":
                link = [{"rel": "self", "href": f"{self.base}/compute/v2.1/"}]
                version = {"id": "v2.1", "status": "CURRENT", "version": "2.90", "min_version": "2.1", "links": link}
                self.answer({"version": version})
            elif path == "/compute/v2.1/servers/detail" and self.headers["X-Auth-Token"] == TOKEN:
                self.answer({"servers": servers})
            else:
                self.answer({"error": {"code": 404, "message": path}}, 404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Cloud) as cloud:
        threading.Thread(target=cloud.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{cloud.server_port}/v3"
        finally:
            cloud.shutdown()
