"""What a lab is meant to be (lab.json) and the lock that lets one command at a time change it.

What actually runs is never written down: it is read from the kernel (see process.py), so a stale file
or a reused process id cannot mislead anyone.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from lab.config import LabError, Paths
from lab.files import write_atomically

FIRST_NODE = 11  # host part of node1's address; .1 is the gateway
VM_OPTIONS = ("memory", "disk", "packages", "layer", "server")  # of `up`, and fields below
SPARE = 100  # from a node's address to its spare one


@dataclass
class NodeState:
    address: str
    """IPv4 address on the lab's LAN."""
    cable: bool = True
    """False: the network cable is pulled."""
    bandwidth: str | None = None
    """Rate in tc's notation ("100mbit"), None: unlimited."""


@dataclass
class LabState:
    kind: str
    """Which kind of node: a key of lab.kinds.KINDS."""
    subnet: str
    """The LAN, a /24."""
    uplink: str
    """The /24 between the LAN's router and the process that reaches the outside."""
    owner: int
    """uid of the person the keys and SSH sockets belong to."""
    suite: str = "bookworm"
    """The Debian on the nodes: one of lab.image.SUITES."""
    ready: bool = False
    """False while `up` has not finished once."""
    memory: int = 2048
    """MiB per node; VM nodes only."""
    disk: int = 16
    """GiB per node; VM nodes only."""
    processors: int = 1
    """Per node; VM nodes only."""
    packages: list[str] = field(default_factory=list)
    """Debian packages that are on every disk beforehand; VM nodes only."""
    layer: str = ""
    """Tar file that is unpacked over every new disk, empty: none; VM nodes only."""
    server: str = ""
    """The node that exports the shared directory, empty: the first; VM nodes only."""
    accelerator: str = ""
    """What runs VM nodes: "kvm" or "tcg", empty while nobody has tried. A snapshot can be used only with its own."""
    snapshots: dict[str, list[str]] = field(default_factory=dict)
    """Name -> the nodes that are in it."""
    nodes: dict[str, NodeState] = field(default_factory=dict)

    @property
    def network(self) -> IPv4Network:
        return IPv4Network(self.subnet)

    @property
    def gateway(self) -> str:
        return str(self.network[1])

    def spare_address(self, name: str) -> str:
        """An address that nobody has: for a node that is to change its own. SSH finds the node there too."""
        return str(IPv4Address(self.nodes[name].address) + SPARE)

    def add_node(self, name: str) -> None:
        self.nodes[name] = NodeState(address=str(self.network[FIRST_NODE + len(self.nodes)]))


def load(paths: Paths) -> LabState | None:
    """The lab's state, None where there is no lab. Raises LabError where the file cannot be used."""
    try:
        raw = json.loads(paths.state.read_text())
        nodes = {name: NodeState(**node) for name, node in raw.pop("nodes").items()}
        return LabState(**raw, nodes=nodes)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise LabError(f"{paths.state}: not a lab's state ({problem}); remove the lab: make lab-down") from None


def networks(paths: Paths) -> list[IPv4Network]:
    """The networks of a lab, also of one that another version of this program made."""
    try:
        raw = json.loads(paths.state.read_text())
        return [IPv4Network(raw[name]) for name in ("subnet", "uplink")]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as problem:
        raise LabError(f"{paths.state}: not a lab's state ({problem}); remove the lab: make lab-down") from None


def save(paths: Paths, state: LabState) -> None:
    """World-readable, no secret inside: the inventory reads it without being root."""
    write_atomically(paths.state, json.dumps(asdict(state), indent=2) + "\n", mode=0o644)


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """One command at a time. The kernel drops the lock with its last holder, however that one ended.

    A child that was forked but not yet executed still holds it: whoever gets the lock next can find
    every process that the previous holder started.
    """
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"lab: waiting for another command that holds {lock}", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # `down` removes the file while it holds the lock: then this is a lock on nothing, take the new one.
        try:
            current = lock.stat()
        except FileNotFoundError:
            os.close(descriptor)
            continue
        if (current.st_dev, current.st_ino) == (os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def alone_on_this_host() -> Iterator[None]:
    """For moments in which two labs would disturb each other. The lock is on /run itself: no file is left behind."""
    descriptor = os.open("/run", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
