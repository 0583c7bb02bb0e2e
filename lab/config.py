"""Names and places of one lab. Everything a lab leaves on the host is found again from its name alone."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT_NODES = 3
MAX_NODES = 50
NODE_USER = "lab"
SHARE_IN_NODE = "/srv/minos"


class LabError(Exception):
    """Something the user can act on: one line that says what is wrong, where, and what to do instead."""


@dataclass(frozen=True)
class Paths:
    """Where the lab called `lab` keeps its things. Short names: they become part of names of the kernel's."""

    lab: str

    @property
    def lib(self) -> Path:
        """Survives a reboot of the host."""
        return Path("/var/lib/minos-lab") / self.lab

    @property
    def run(self) -> Path:
        """Gone after a reboot of the host, as the processes are."""
        return Path("/run/minos-lab") / self.lab

    @property
    def cache(self) -> Path:
        """Shared by all labs. System-wide, not in a home: root unpacks only what root wrote."""
        return Path(os.environ.get("MINOS_LAB_CACHE", "/var/cache/minos-lab"))

    @property
    def state(self) -> Path:
        return self.lib / "lab.json"

    @property
    def lock(self) -> Path:
        """Outside `lib` and `run`, because `down` removes both while it holds the lock."""
        return Path(f"/run/minos-lab-{self.lab}.lock")

    @property
    def nodes(self) -> Path:
        """Closed to others (0700): a file system of a node holds set-uid files and secrets of its own."""
        return self.lib / "nodes"

    @property
    def host_keys(self) -> Path:
        return self.lib / "host-keys"

    @property
    def share(self) -> Path:
        return self.lib / "share"

    @property
    def private(self) -> Path:
        """Keys, known hosts, the nodes' password, the host's pip settings: for the lab's owner only."""
        return self.lib / "private"

    @property
    def ssh_key(self) -> Path:
        return self.private / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.private / "known_hosts"

    @property
    def password(self) -> Path:
        return self.private / "password"

    @property
    def settings(self) -> Path:
        return self.private / "host-settings.json"

    @property
    def sockets(self) -> Path:
        return self.run / "ssh"

    @property
    def logs(self) -> Path:
        return self.run / "log"


def lab_name() -> str:
    """The lab this command is about: `MINOS_LAB`, else "lab"."""
    name = os.environ.get("MINOS_LAB", "lab")
    if not re.fullmatch(r"[a-z][a-z0-9]{0,11}", name):
        raise LabError(f"MINOS_LAB={name!r}: use up to 12 small letters and digits, a letter first")
    return name


def node_names(count: int) -> list[str]:
    return [f"node{number}" for number in range(1, count + 1)]
