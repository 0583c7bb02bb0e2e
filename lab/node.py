"""What a lab node can do, whatever it is made of. Everything above this file knows only this."""

from abc import ABC, abstractmethod

from lab.config import Paths
from lab.hostsettings import HostSettings
from lab.state import LabState


class Node(ABC):
    """One machine of the lab. Methods raise LabError; those that change something are idempotent."""

    def __init__(self, name: str):
        self.name = name

    @abstractmethod
    def exists(self) -> bool:
        """True once its disk is completely made."""

    @abstractmethod
    def create(self) -> None:
        """Make its disk, as new from the installer. The node is off afterwards."""

    @abstractmethod
    def erase(self) -> None:
        """Remove its disk. The node must be off."""

    @abstractmethod
    def is_on(self) -> bool: ...

    @abstractmethod
    def start(self) -> None:
        """Switch on; returns before it has booted."""

    @abstractmethod
    def power_off(self) -> bool:
        """Clean shutdown, waited for. False where it did not end in time."""

    @abstractmethod
    def pull_plug(self) -> None:
        """Off at once: nothing is flushed, nothing is said to its peers."""

    @abstractmethod
    def set_cable(self, plugged: bool) -> None:
        """Pull or plug the LAN cable of a node that is on."""

    @abstractmethod
    def set_bandwidth(self, rate: str | None) -> None:
        """Limit its link both ways (tc's notation), None: no limit. For a node that is on."""

    @abstractmethod
    def exec_argv(self, command: list[str]) -> list[str]:
        """A command of the host that runs `command` as root inside the node, without SSH."""

    # The rest is for kinds with `snapshots`.

    def freeze(self) -> None:
        """Stop a node that is on between two instructions."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Let a frozen node go on, with its clock and its cable right."""
        raise NotImplementedError

    def save(self, snapshot: str) -> None:
        """Keep a frozen node's disk and memory under a name; one of that name is replaced."""
        raise NotImplementedError

    def load(self, snapshot: str) -> None:
        """Make a node that is off or frozen what it was in a snapshot. It is frozen afterwards."""
        raise NotImplementedError


class Kind(ABC):
    """One way to make nodes and the LAN between them."""

    boot_patience = 120.0
    """Seconds until a node that was switched on must let its owner log in."""
    nic = "lan0"
    """Name of the LAN's network card in a node."""
    snapshots = False
    """Its nodes can be frozen and kept, memory and disk."""
    shared = True
    """All nodes see one directory of the host at the same place, as from a NAS; else the head exports its own."""

    def __init__(self, paths: Paths):
        self.paths = paths

    @abstractmethod
    def prepare_host(self) -> None:
        """Install what the host lacks, saying so; raise LabError for what cannot be installed."""

    @abstractmethod
    def raise_lan(self, state: LabState, settings: HostSettings) -> None:
        """The LAN, its way out and the SSH door of every node."""

    @abstractmethod
    def prepare_nodes(self, state: LabState, settings: HostSettings) -> None:
        """What all nodes share: the base image."""

    @abstractmethod
    def node(self, state: LabState, name: str) -> Node: ...

    @abstractmethod
    def proxy_command(self) -> str:
        """OpenSSH ProxyCommand (%h: the address) that leads an ordinary shell of the owner's to a node."""

    @abstractmethod
    def door(self, address: str) -> str:
        """Path of a Unix socket of the host that leads to a node's SSH port."""

    @abstractmethod
    def outsider_argv(self, command: list[str]) -> list[str]:
        """A command of the host that runs `command` on the LAN, on a machine that is no node."""

    def package_url(self, state: LabState, directory: str) -> str:
        """How a node writes a directory with Python packages of the host."""
        return directory

    @abstractmethod
    def sweep(self) -> None:
        """End what a killed command left half-way. Running nodes go on."""

    @abstractmethod
    def remove_everything(self) -> None:
        """End and remove all of the lab but its files, found by the lab's name, with or without a state file."""

    @abstractmethod
    def purge(self) -> None:
        """Remove what labs share and keep: the image cache."""
