"""Container nodes: systemd-nspawn, at native speed, on the host's kernel."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from lab import cgroup, host, image, keys, network, process, rootfs
from lab.config import SHARE_IN_NODE, LabError, Paths
from lab.files import remove_tree, write_atomically
from lab.hostsettings import HostSettings
from lab.node import Kind, Node
from lab.state import LabState

OFF_PATIENCE = 90.0  # seconds for a clean shutdown: systemd's own limit for one service
SYSTEMD_POWEROFF = signal.SIGRTMIN + 4  # systemd(1), for its first process
NSPAWN_RUN = Path("/run/systemd/nspawn")


def power_role(node: str) -> str:
    return f"power-{node}"


def nspawn_argv(paths: Paths, node: str, binds: list[str]) -> list[str]:
    """The command that is a running node. `binds`: host directories shown to it read-only at the same path."""
    return [
        "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--link-journal=no",
        "--resolv-conf=off", "--timezone=off", f"--machine={machine(paths.lab, node)}", f"--hostname={node}",
        f"--directory={rootfs.root_of(paths, node)}",
        f"--network-namespace-path={network.NETNS / network.node_namespace(paths.lab, node)}",
        "--capability=CAP_NET_ADMIN,CAP_NET_RAW",
        f"--bind={paths.share}:{SHARE_IN_NODE}",
        *(f"--bind-ro={directory}" for directory in binds),
    ]  # fmt: skip


def machine(lab: str, node: str) -> str:
    return f"minos-{lab}-{node}"


class ContainerNode(Node):
    def __init__(self, paths: Paths, state: LabState, name: str):
        super().__init__(name)
        self._paths, self._state = paths, state
        self._lab = paths.lab

    def exists(self) -> bool:
        return rootfs.root_of(self._paths, self.name).exists()

    def create(self) -> None:
        settings = read_settings(self._paths)
        base = image.ensure(self._paths, settings)
        rootfs.create(self._paths, self._state, settings, base, self.name)

    def erase(self) -> None:
        remove_tree(self._paths.nodes / self.name)

    def is_on(self) -> bool:
        return bool(process.find(self._lab, power_role(self.name)))

    def start(self) -> None:
        argv = [sys.executable, "-B", "-m", "lab.supervisor", self._lab, self.name]
        process.spawn(
            self._lab, power_role(self.name), cgroup.scope(self._lab, "supervisor") + argv,
            log=self._paths.logs / f"{self.name}.log", cwd=host.CLONE,
        )  # fmt: skip

    def power_off(self) -> bool:
        leader = self._leader()
        if leader is not None:
            os.kill(leader, SYSTEMD_POWEROFF)
        deadline = time.monotonic() + OFF_PATIENCE
        while self.is_on():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def pull_plug(self) -> None:
        # The cable first: a dying process closes its connections, which a machine without power cannot do.
        if network.exists(network.lan_namespace(self._lab)):
            process.run(
                self._lab, "ip", "-n", network.lan_namespace(self._lab), "link", "set", self.name, "down", check=False
            )
        cgroup.kill(self._lab, self.name)
        while left := process.find(self._lab, power_role(self.name)):
            process.kill(self._lab, left)
        network.unplug(self._lab, self.name)
        cgroup.remove(self._lab, self.name)

    def set_cable(self, plugged: bool) -> None:
        network.set_cable(self._lab, self.name, plugged)

    def set_bandwidth(self, rate: str | None) -> None:
        network.set_bandwidth(self._lab, self.name, rate)

    def exec_argv(self, command: list[str]) -> list[str]:
        leader = self._leader()
        if leader is None:
            raise LabError(f"{self.name} is off: python3 -m lab start {self.name}")
        environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root",
                       "LANG=C.UTF-8", f"TERM={os.environ.get('TERM', 'dumb')}"]  # fmt: skip
        return ["nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--",
                "env", "-i", "--chdir=/root", *environment, *command]  # fmt: skip

    def _leader(self) -> int | None:
        """Process id, on the host, of the node's first process; None while it is off."""
        ours = {found.pid for found in process.find(self._lab, power_role(self.name))}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and _is_first_of_container((entry / "status").read_text(), ours):
                    return int(entry.name)
            except OSError:
                continue
        return None


def _is_first_of_container(status: str, parents: set[int]) -> bool:
    """True for a /proc/PID/status of number 1 in a namespace of its own, child of one of `parents`."""
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    numbers = fields["NSpid"].split()
    return int(fields["PPid"]) in parents and len(numbers) > 1 and numbers[-1] == "1"


def _sweep_crumbs(lab: str) -> None:
    """The empty directories that systemd-nspawn leaves when it is killed."""
    crumbs = NSPAWN_RUN / "propagate"
    for empty in (*crumbs.glob(machine(lab, "*")), crumbs, NSPAWN_RUN):
        with contextlib.suppress(OSError):  # another lab, or somebody else's container, has something in it
            empty.rmdir()


def read_settings(paths: Paths) -> HostSettings:
    return HostSettings.from_json(paths.settings.read_text())


class Containers(Kind):
    def prepare_host(self) -> None:
        host.install_missing()
        host.check_devices()
        if not cgroup.systemd_runs_here() and not cgroup.hierarchies():
            raise LabError("no writable control groups (cgroup2): containers that boot systemd need them")

    def raise_lan(self, state: LabState, settings: HostSettings) -> None:
        self.paths.logs.mkdir(parents=True, exist_ok=True)
        self.paths.sockets.mkdir(exist_ok=True)
        network.raise_lan(self.paths, state, host_loopback=settings.needs_host_loopback())
        running = {found.role for found in process.find(self.paths.lab)}
        for name, node in state.nodes.items():
            if f"door-{name}" not in running:
                door = f"UNIX-LISTEN:{self.door(node.address)},fork,unlink-early,mode=0600,user={state.owner}"
                sshd = f"TCP4:{node.address}:22,connect-timeout=10"
                process.spawn(
                    self.paths.lab, f"door-{name}",
                    network.inside(network.lan_namespace(self.paths.lab), "socat", door, sshd),
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
            image.ensure(self.paths, settings)

    def node(self, state: LabState, name: str) -> ContainerNode:
        return ContainerNode(self.paths, state, name)

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
        _sweep_crumbs(lab)

    def purge(self) -> None:
        image.purge(self.paths)
