"""What all kinds of nodes share: the LAN of network.py, an SSH door per node, keys, the way to end it all."""

from abc import abstractmethod

from lab import cgroup, image, keys, network, process
from lab.config import LabError, Paths
from lab.files import write_atomically
from lab.hostsettings import HostSettings
from lab.node import Kind
from lab.state import LabState


class LanKind(Kind):
    """A kind whose nodes are plugged into the bridge of the lab's own network namespace."""

    ipv6 = False
    """The router has IPv6 on the LAN too: an outsider can then try the nodes by it."""

    @abstractmethod
    def recipe(self, state: LabState) -> image.Recipe:
        """What its nodes have that others have not."""

    def raise_lan(self, state: LabState, settings: HostSettings) -> None:
        self.paths.logs.mkdir(parents=True, exist_ok=True)
        self.paths.sockets.mkdir(exist_ok=True)
        network.raise_lan(self.paths, state, host_loopback=settings.needs_host_loopback(), ipv6=self.ipv6)
        running = {found.role for found in process.find(self.paths.lab)}
        for name, node in state.nodes.items():
            # The second one is for a node that changes its address, as roles and their tests make it.
            for role, address in (f"door-{name}", node.address), (f"spare-door-{name}", state.spare_address(name)):
                if role not in running:
                    self._open_door(state, role, address)

    def _open_door(self, state: LabState, role: str, address: str) -> None:
        door = f"UNIX-LISTEN:{self.door(address)},fork,unlink-early,mode=0600,user={state.owner}"
        sshd = f"TCP4:{address}:22,connect-timeout=10"
        process.spawn(
            self.paths.lab, role, network.inside(network.lan_namespace(self.paths.lab), "socat", door, sshd),
            log=self.paths.logs / "doors.log",
        )  # fmt: skip

    def prepare_nodes(self, state: LabState, settings: HostSettings) -> None:
        keys.make_private(self.paths, state.owner)
        write_atomically(self.paths.settings, settings.to_json(), mode=0o600, owner=state.owner)
        keys.write_known_hosts(self.paths, state)
        self.paths.nodes.mkdir(exist_ok=True)
        self.paths.nodes.chmod(0o700)
        self.paths.share.mkdir(exist_ok=True)
        if not all(self.node(state, name).exists() for name in state.nodes):
            image.ensure(self.paths, settings, self.recipe(state))

    def proxy_command(self) -> str:
        return f"socat - UNIX-CONNECT:{self.door('%h')}"

    def door(self, address: str) -> str:
        return str(self.paths.sockets / f"{address}.sock")

    def outsider_argv(self, command: list[str]) -> list[str]:
        if not network.exists(network.lan_namespace(self.paths.lab)):
            raise LabError("the lab is not up: run make lab-up")
        return network.inside(network.lan_namespace(self.paths.lab), *command)

    def sweep(self) -> None:
        process.kill(self.paths.lab, process.find(self.paths.lab, process.HELPER))

    def remove_everything(self) -> None:
        lab = self.paths.lab
        while left := process.find(lab):
            process.kill(lab, left)
        cgroup.kill(lab)
        network.lower_lan(lab)
        cgroup.remove(lab)
        image.sweep(self.paths)

    def purge(self) -> None:
        image.purge(self.paths)


def read_settings(paths: Paths) -> HostSettings:
    """What `up` was told about the host, for nodes that are made later."""
    return HostSettings.from_json(paths.settings.read_text())
