"""What a node was asked, and its answer to files/probe.sh."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "files" / "probe.sh"


@dataclass(frozen=True)
class Finding:
    """`fatal` ends the run; else it is a warning."""

    fatal: bool
    text: str

    def of(self, whom: str) -> dict[str, Any]:
        return {"fatal": self.fatal, "text": f"{whom}: {self.text}"}


def error(text: str) -> Finding:
    return Finding(True, text)


def warning(text: str) -> Finding:
    return Finding(False, text)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments of probe_node."""

    name: str
    members: Mapping[str, str]
    address: str
    wanted: str
    interface: str
    gateway: str
    store: str
    python: str
    systems: Mapping[str, list[str]]
    space: list[Mapping[str, Any]]
    mends: str
    memory: float
    ssh: bool
    accounts: list[str]

    def command(self) -> str:
        """Return the shell command for the node."""
        peers = [address for name, address in self.members.items() if name != self.name]
        values = {
            "address": self.address,
            "peers": " ".join(peers),
            "paths": " ".join(str(entry["path"]) for entry in self.space),
            "accounts": " ".join(self.accounts),
            "made": " ".join(str(entry["unless"]) for entry in self.space if entry.get("unless")),
            "python": "/usr/bin/python3" if self.python.startswith("auto") else self.python,
        }
        settings = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
        # What is missing shows in the answer; messages beside it would only confuse.
        return "\n".join(["exec 2>/dev/null; export LC_ALL=C", *settings, SCRIPT.read_text()])


class Answer:
    """The sections that the script printed."""

    def __init__(self, text: str):
        parts = re.split(r"(?m)^@([a-z]+)\n", text.replace("\r\n", "\n"))
        self.sections = {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}

    @property
    def complete(self) -> bool:
        return "end" in self.sections

    def lines(self, name: str) -> list[str]:
        return self.sections.get(name, "").splitlines()

    @property
    def time(self) -> float:
        return float(self.sections["time"])

    @property
    def identity(self) -> dict[str, str]:
        """Ids that no two machines share: machine, boot, key. What it does not have is left out."""
        words = (line.partition(" ") for line in self.lines("identity"))
        return {kind: value for kind, _, value in words if value}

    @property
    def links(self) -> dict[str, list[str]]:
        """All interfaces, and the IPv4 addresses of each."""
        found = json.loads(self.sections.get("links") or "[]")
        return {
            link["ifname"]: [entry["local"] for entry in link["addr_info"] if entry.get("family") == "inet"]
            for link in found
            if link.get("ifname")
        }

    def interface(self, named: str) -> str:
        """The name of an interface that the inventory gives by its MAC or its name; as given where there is none."""
        links = json.loads(self.sections.get("links") or "[]")
        macs = {link["address"].lower(): link["ifname"] for link in links if link.get("ifname") and link.get("address")}
        return macs.get(named.lower(), named)

    @property
    def routes(self) -> dict[str, dict[str, Any]]:
        """The way to each peer, as `ip route get` says it; empty where there is none."""
        ways = {}
        for line in self.lines("routes"):
            peer, _, found = line.partition(" ")
            ways[peer] = (json.loads(found) or [{}])[0] if found else {}
        return ways
