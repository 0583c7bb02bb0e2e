"""Container nodes: systemd-nspawn, at native speed, on the host's kernel."""

import contextlib
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from lab import cgroup, host, image, lan, network, process, rootfs
from lab.config import SHARE_IN_NODE, LabError, Paths
from lab.files import remove_tree
from lab.lan import LanKind
from lab.node import Node
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


def recipe(state: LabState) -> image.Recipe:
    return replace(image.CONTAINER, suite=state.suite)


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
        settings = lan.read_settings(self._paths)
        base = image.ensure(self._paths, settings, recipe(self._state))
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


class Containers(LanKind):
    nic = network.NODE_NIC

    def prepare_host(self) -> None:
        host.install_missing({**host.TOOLS, **host.CONTAINER_TOOLS})
        host.check_devices()
        if not cgroup.systemd_runs_here() and not cgroup.hierarchies():
            raise LabError("no writable control groups (cgroup2): containers that boot systemd need them")

    def recipe(self, state: LabState) -> image.Recipe:
        return recipe(state)

    def node(self, state: LabState, name: str) -> ContainerNode:
        return ContainerNode(self.paths, state, name)

    def remove_everything(self) -> None:
        super().remove_everything()
        _sweep_crumbs(self.paths.lab)
