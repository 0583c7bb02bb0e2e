"""VM nodes: QEMU, on KVM or emulated, each with a kernel of its own."""

import contextlib
import sys
import time
from dataclasses import replace

from lab import cgroup, disk, host, image, lan, network, packages, process, qemu, qmp, tap
from lab.config import LabError, Paths
from lab.hostsettings import HostSettings
from lab.lan import LanKind
from lab.node import Node
from lab.state import LabState

OFF_PATIENCE = 240.0  # seconds for a clean shutdown: systemd's limit for one service, on an emulated processor
BUTTON_AGAIN = 15.0  # a guest that is still booting does not hear its power button
GRACE = 10  # seconds
SNAPSHOT_PATIENCE = 300.0
PACKAGES_ROLE = "packages"


def recipe(state: LabState) -> image.Recipe:
    return replace(image.VM, suite=state.suite, packages=image.VM.packages + tuple(state.packages))


def power_role(node: str) -> str:
    return f"power-{node}"


class VmNode(Node):
    def __init__(self, paths: Paths, state: LabState, name: str):
        super().__init__(name)
        self._paths, self._state = paths, state
        self._lab = paths.lab
        self._monitor, self._agent = qemu.monitor_socket(paths, name), qemu.agent_socket(paths, name)

    def exists(self) -> bool:
        return disk.of(self._paths, self.name).exists()

    def create(self) -> None:
        settings = lan.read_settings(self._paths)
        base = image.ensure(self._paths, settings, recipe(self._state))
        disk.create(self._paths, self._state, settings, base, self.name)

    def erase(self) -> None:
        for file in (disk.of(self._paths, self.name), *disk.of(self._paths, self.name).parent.glob("*.img")):
            file.unlink(missing_ok=True)

    def is_on(self) -> bool:
        return bool(process.find(self._lab, power_role(self.name)))

    def start(self) -> None:
        self._switch_on(None)

    def _switch_on(self, snapshot: str | None) -> None:
        tap.plug_in(self._lab, self.name, self._state.nodes[self.name])
        machine = qemu.argv(self._paths, self._state, self.name, snapshot=snapshot)
        process.spawn(
            self._lab, power_role(self.name),
            cgroup.scope(self._lab, self.name) + network.inside(network.node_namespace(self._lab, self.name), *machine),
            log=self._paths.logs / f"{self.name}.log",
        )  # fmt: skip
        self._wait_for_monitor()
        if not self._state.nodes[self.name].cable:
            self.set_cable(False)

    def _wait_for_monitor(self) -> None:
        began = time.monotonic()
        while True:
            try:
                qmp.monitor(self._monitor, "query-status", patience=SNAPSHOT_PATIENCE)
                return
            except LabError:
                waited = time.monotonic() - began
                # On a busy machine it is not there yet in the first moments.
                if waited > qmp.PATIENCE or (waited > GRACE and not self.is_on()):
                    console = self._paths.logs / f"{self.name}.log"
                    words = console.read_text(errors="replace").strip().splitlines() or ["no message"]
                    raise LabError(f"{self.name}: QEMU does not run: {words[-1]} (all of it: {console})") from None
                time.sleep(0.1)

    def power_off(self) -> bool:
        deadline = time.monotonic() + OFF_PATIENCE
        pressed = 0.0
        while self.is_on():
            if time.monotonic() > deadline:
                return False
            if time.monotonic() > pressed + BUTTON_AGAIN:
                pressed = time.monotonic()
                with contextlib.suppress(LabError):  # it has just gone off
                    qmp.monitor(self._monitor, "system_powerdown")
            time.sleep(0.1)
        return True

    def pull_plug(self) -> None:
        while left := process.find(self._lab, power_role(self.name)):
            process.kill(self._lab, left)
        network.unplug(self._lab, self.name)
        cgroup.remove(self._lab, self.name)

    def set_cable(self, plugged: bool) -> None:
        network.set_cable(self._lab, self.name, plugged)
        qmp.monitor(self._monitor, "set_link", name="nic", up=plugged)  # so that the guest sees its carrier go

    def set_bandwidth(self, rate: str | None) -> None:
        network.set_bandwidth(self._lab, self.name, rate)

    def exec_argv(self, command: list[str]) -> list[str]:
        if not self.is_on():
            raise LabError(f"{self.name} is off: python3 -m lab start {self.name}")
        return [sys.executable, "-B", "-m", "lab.guest", str(self._agent), *command]

    def freeze(self) -> None:
        qmp.monitor(self._monitor, "stop")

    def thaw(self) -> None:
        qmp.monitor(self._monitor, "cont")
        self.set_cable(self._state.nodes[self.name].cable)  # as it is now, not as it was in a snapshot
        status, _, errors = qmp.execute(self._agent, ["date", "-u", "-s", f"@{time.time():.3f}"], patience=60)
        if status != 0:
            raise LabError(f"{self.name}: its clock could not be set: {errors.decode(errors='replace').strip()}")

    def save(self, snapshot: str) -> None:
        qmp.human(self._monitor, f"savevm {snapshot}", patience=SNAPSHOT_PATIENCE)

    def load(self, snapshot: str) -> None:
        if self.is_on():
            qmp.human(self._monitor, f"loadvm {snapshot}", patience=SNAPSHOT_PATIENCE)
        else:
            self._switch_on(snapshot)


class Vms(LanKind):
    ipv6 = True
    boot_patience = 600.0  # emulated, several at once, on a busy host
    nic = disk.NIC
    snapshots = True
    shared = False

    def prepare_host(self) -> None:
        if image.machine() != "x86_64":
            raise LabError(f"VM nodes are x86-64 machines, this host is {image.machine()}: use --kind container")
        host.install_missing({**host.TOOLS, **host.VM_TOOLS})
        host.check_devices()

    def raise_lan(self, state: LabState, settings: HostSettings) -> None:
        super().raise_lan(state, settings)
        sockets = qemu.monitor_socket(self.paths, "any").parent
        sockets.mkdir(mode=0o700, exist_ok=True)
        folders = settings.local_directories()
        if folders and not process.find(self.paths.lab, PACKAGES_ROLE):
            server = [sys.executable, "-B", "-m", "lab.packages", state.gateway, str(packages.PORT), *folders]
            process.spawn(
                self.paths.lab, PACKAGES_ROLE, network.inside(network.lan_namespace(self.paths.lab), *server),
                log=self.paths.logs / "packages.log", cwd=host.CLONE,
            )  # fmt: skip

    def prepare_nodes(self, state: LabState, settings: HostSettings) -> None:
        super().prepare_nodes(state, settings)
        if not all(file.exists() for file in disk.boot_files(self.paths).values()):
            disk.extract_boot_files(self.paths, image.ensure(self.paths, settings, recipe(state)))
        if not state.accelerator:
            state.accelerator = qemu.accelerator(self.paths)
            if state.accelerator == "tcg":
                print("lab: no guest boots on this host's KVM, so the nodes are emulated, ten times slower", flush=True)

    def recipe(self, state: LabState) -> image.Recipe:
        return recipe(state)

    def node(self, state: LabState, name: str) -> VmNode:
        return VmNode(self.paths, state, name)

    def package_url(self, state: LabState, directory: str) -> str:
        return packages.url(state.gateway, directory)
