"""What `python -m lab VERB` does, for any kind of node."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from os import cpu_count
from pathlib import Path

from lab import host, inventory, subnets
from lab import state as states
from lab.config import DEFAULT_NODES, NODE_USER, LabError, Paths, node_names
from lab.files import refuse_mounts, remove_tree
from lab.hostsettings import HostSettings
from lab.kinds import KINDS, kind
from lab.node import Kind, Node
from lab.state import LabState

DEFAULT_KIND = "container"
NEXT = """Next:
  ansible-playbook -i inventory/lab site.yml     make them a cluster
  python3 -m lab ssh node1                       look around (also: status, kill, start, cable, bandwidth, reset)
  python3 -m lab down                            remove every trace"""


@dataclass(frozen=True)
class Wanted:
    """What `up` was asked for; None: as it is, or the default."""

    count: int | None = None
    kind: str | None = None
    options: dict[str, object] = field(default_factory=dict)
    """`suite` and those of state.VM_OPTIONS, as far as they were named."""


@dataclass
class Lab:
    """A lab that exists, loaded: what the verbs share."""

    paths: Paths
    state: LabState
    kind: Kind

    @classmethod
    def load(cls, paths: Paths) -> "Lab":
        state = states.load(paths)
        if state is None:
            raise LabError("the lab is not up: run make lab-up")
        return cls(paths, state, kind(state.kind, paths))

    def node(self, name: str) -> Node:
        if name not in self.state.nodes:
            raise LabError(f"no node {name!r} in this lab; it has {', '.join(self.state.nodes)}")
        return self.kind.node(self.state, name)

    def all_nodes(self) -> list[Node]:
        return [self.node(name) for name in self.state.nodes]

    def save(self) -> None:
        states.save(self.paths, self.state)


def up(paths: Paths, wanted: Wanted, settings: HostSettings) -> None:
    """Make the lab, or bring back what is off or half made of it."""
    started = time.monotonic()
    state = states.load(paths)
    kind(wanted.kind or (state.kind if state else DEFAULT_KIND), paths).prepare_host()
    with states.exclusive(paths.lock):
        lab = _found_or_founded(paths, wanted)
        lab.kind.sweep()
        lab.kind.raise_lan(lab.state, settings)
        lab.kind.prepare_nodes(lab.state, settings)
        missing = [node for node in lab.all_nodes() if not node.exists()]
        _create(lab, missing)
        for node in lab.all_nodes():
            if not node.is_on():
                node.pull_plug()  # what a killed `down` left of it could still answer, and be taken for the new one
                node.start()
        wait_for_login(lab, list(lab.state.nodes))
        lab.state.ready = True
        lab.save()
        print(table(lab))
    print(f"lab: {len(lab.state.nodes)} nodes answer SSH after {time.monotonic() - started:.1f} s\n{NEXT}")


def _found_or_founded(paths: Paths, wanted: Wanted) -> Lab:
    state = states.load(paths)
    if state is None:
        unfit = [name for name in wanted.options if name in states.VM_OPTIONS]
        if (wanted.kind or DEFAULT_KIND) != "vm" and unfit:
            raise LabError(f"--{unfit[0]} is for virtual machines: add --kind vm")
        # Nothing may be left of an earlier lab whose state was lost: its addresses could be others.
        _remove(paths)
        paths.lib.mkdir(parents=True)
        with states.alone_on_this_host():  # another lab that chooses now would choose the same
            lan, uplink = subnets.choose(_taken(), 2)
            state = LabState(wanted.kind or DEFAULT_KIND, subnet=str(lan), uplink=str(uplink), owner=host.owner())
            states.save(paths, state)
        vars(state).update(wanted.options)
        # A node's processors are threads of the host. Once and for all: a snapshot fits its own hardware only.
        state.processors = max(1, (cpu_count() or 1) // (wanted.count or DEFAULT_NODES))
    elif wanted.kind not in (None, state.kind):
        raise LabError(f"this lab is made of {state.kind} nodes: `python3 -m lab down` first, or another MINOS_LAB")
    elif other := [name for name, value in wanted.options.items() if getattr(state, name) != value]:
        is_now = getattr(state, other[0]) or "none"
        raise LabError(f"--{other[0]} is {is_now} in this lab: `python3 -m lab down` first, or another MINOS_LAB")
    count = wanted.count or len(state.nodes) or DEFAULT_NODES
    if count < len(state.nodes):
        raise LabError(f"-n {count}: the lab has {len(state.nodes)} nodes; to make it smaller: python3 -m lab down")
    if state.server not in ("", *node_names(count)):
        raise LabError(f"--server {state.server}: no such node; there are {', '.join(node_names(count))}")
    for name in node_names(count)[len(state.nodes) :]:
        state.add_node(name)
        state.ready = False
    states.save(paths, state)
    return Lab(paths, state, kind(state.kind, paths))


def _taken() -> list[IPv4Network]:
    """Networks that the host can reach by name of a route, its name servers, and those of other labs."""
    routes = subprocess.run(["ip", "-j", "-4", "route", "show", "table", "all"], capture_output=True, text=True)
    taken = subnets.routed(routes.stdout) + subnets.nameservers(Path("/etc/resolv.conf").read_text())
    for file in Path("/var/lib/minos-lab").glob("*/lab.json"):
        taken += states.networks(Paths(file.parent.name))
    return taken


def down(paths: Paths, *, purge: bool) -> None:
    """Remove every trace of the lab; of all labs' image cache too with `purge`."""
    with states.exclusive(paths.lock):
        _remove(paths)
        if purge:
            for name in KINDS:
                kind(name, paths).purge()
        paths.lock.unlink()


def _remove(paths: Paths) -> None:
    for name in KINDS:
        kind(name, paths).remove_everything()
    if paths.run.exists():
        shutil.rmtree(paths.run)
    # Renamed first: what a killed `down` half removed must not be taken for a lab.
    doomed = paths.lib.with_name(f".{paths.lab}.removed")
    remove_tree(doomed)
    if paths.lib.exists():
        refuse_mounts(paths.lib)
        paths.lib.rename(doomed)
        remove_tree(doomed)
    for parent in (paths.run.parent, paths.lib.parent):
        if parent.exists() and not any(parent.iterdir()):
            parent.rmdir()


def status(paths: Paths, *, as_json: bool) -> None:
    lab = Lab.load(paths)
    if as_json:
        nodes = {
            node.name: {
                **vars(lab.state.nodes[node.name]),
                "spare_address": lab.state.spare_address(node.name),
                "power": "on" if node.is_on() else "off",
            }
            for node in lab.all_nodes()
        }
        of_all = {name: getattr(lab.state, name) for name in ("kind", "accelerator", "snapshots", "ready")}
        print(json.dumps({"lab": paths.lab, **of_all, "share": str(paths.share), "nodes": nodes}))
        return
    print(table(lab))
    if not lab.state.ready:
        print("lab: half made, an `up` did not finish; `python3 -m lab up` goes on from here")


def table(lab: Lab) -> str:
    rows = [("NODE", "ADDRESS", "POWER", "CABLE", "BANDWIDTH")]
    for node in lab.all_nodes():
        meant = lab.state.nodes[node.name]
        power = ("on" if node.is_on() else "off") if node.exists() else "not made yet"
        rows.append((node.name, meant.address, power, "in" if meant.cable else "out", meant.bandwidth or "-"))
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(5)]
    return "\n".join(
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def start(paths: Paths, name: str) -> None:
    """Switch a node on and wait until its owner can log in."""
    with states.exclusive(paths.lock):
        lab = Lab.load(paths)
        node = lab.node(name)
        if node.is_on():
            print(f"lab: {name} is on already")
            return
        node.pull_plug()  # what outlived a supervisor that was killed could answer, and be taken for the new one
        node.start()
        if not lab.state.nodes[name].cable:
            print(f"lab: {name} is on; its cable is out, so nobody can tell when it has booted")
            return
        wait_for_login(lab, [name])
        print(f"lab: {name} is on")


def next_steps(paths: Paths) -> None:
    """What one can type now."""
    Lab.load(paths)
    print(NEXT)


def kill(paths: Paths, name: str, *, clean: bool) -> None:
    """Pull a node's plug, or shut it down cleanly."""
    with states.exclusive(paths.lock):
        node = Lab.load(paths).node(name)
        if not node.is_on():
            if not clean:
                node.pull_plug()  # it may have outlived its supervisor
            print(f"lab: {name} is off already")
        elif clean and not node.power_off():
            raise LabError(
                f"{name} did not shut down in time and is still on; python3 -m lab kill {name} pulls its plug"
            )
        else:
            node.pull_plug()  # after a clean shutdown: nothing left but what a fresh start needs gone
            print(f"lab: {name} is off" if clean else f"lab: {name} has lost its power")


def reset(paths: Paths, names: list[str]) -> None:
    """Give nodes a new disk, as from the installer, with the same address and host keys; all nodes without names."""
    with states.exclusive(paths.lock):
        lab = Lab.load(paths)
        nodes = [lab.node(name) for name in names] or lab.all_nodes()
        lab.kind.sweep()
        lab.state.snapshots.clear()  # they are of all nodes, and these lose theirs
        lab.save()
        for node in nodes:
            node.pull_plug()
            node.erase()
        _create(lab, nodes)
        for node in nodes:
            node.start()
        wait_for_login(lab, [node.name for node in nodes if lab.state.nodes[node.name].cable])
    print(f"lab: as new: {', '.join(node.name for node in nodes)}")


def snapshot(paths: Paths, name: str) -> None:
    """Keep disk and memory of all nodes, of one moment."""
    started = time.monotonic()
    with states.exclusive(paths.lock):
        lab = Lab.load(paths)
        if not lab.kind.snapshots:
            raise LabError(f"{lab.state.kind} nodes have no snapshots: MINOS_LAB=NAME python3 -m lab up --kind vm")
        nodes = lab.all_nodes()
        if off := [node.name for node in nodes if not node.is_on()]:
            raise LabError(f"a snapshot is of running nodes, and {', '.join(off)} is off: python3 -m lab up")
        lab.state.snapshots.pop(name, None)
        lab.save()
        try:
            each(nodes, lambda node: node.freeze())
            each(nodes, lambda node: node.save(name))
        finally:
            each(nodes, lambda node: node.thaw())
        lab.state.snapshots[name] = list(lab.state.nodes)
        lab.save()
    print(f"lab: snapshot {name} of {len(nodes)} nodes made in {time.monotonic() - started:.1f} s")


def restore(paths: Paths, name: str) -> None:
    """Make all nodes what they were when the snapshot was made, whether they are on or off now."""
    started = time.monotonic()
    with states.exclusive(paths.lock):
        lab = Lab.load(paths)
        if lab.state.snapshots.get(name) != list(lab.state.nodes):
            usable = [known for known, nodes in lab.state.snapshots.items() if nodes == list(lab.state.nodes)]
            raise LabError(f"no snapshot {name!r} of these nodes; there is {', '.join(usable) or 'none'}")
        nodes = lab.all_nodes()
        each([node for node in nodes if node.is_on()], lambda node: node.freeze())
        each(nodes, lambda node: node.load(name))
        each(nodes, lambda node: node.thaw())
        wait_for_login(lab, list(lab.state.nodes))
    print(f"lab: {len(nodes)} nodes are as in snapshot {name} after {time.monotonic() - started:.1f} s")


def each(nodes: list[Node], action: Callable[[Node], None]) -> None:
    """For all nodes at once; they wait for disks and guests, not for a processor."""
    with ThreadPoolExecutor(max_workers=len(nodes) or 1) as pool:
        list(pool.map(action, nodes))


def cable(paths: Paths, name: str, *, plugged: bool) -> None:
    with states.exclusive(paths.lock):
        lab = Lab.load(paths)
        node = lab.node(name)
        lab.state.nodes[name].cable = plugged
        lab.save()
        if node.is_on():
            node.set_cable(plugged)
    print(f"lab: the cable of {name} is {'in' if plugged else 'out'}")


def bandwidth(paths: Paths, name: str, rate: str | None) -> None:
    with states.exclusive(paths.lock):
        lab = Lab.load(paths)
        node = lab.node(name)
        lab.state.nodes[name].bandwidth = rate
        lab.save()
        if node.is_on():
            node.set_bandwidth(rate)
    print(f"lab: {name}: {f'{rate} each way' if rate else 'no limit'}")


def ssh_argv(paths: Paths, name: str, command: list[str]) -> list[str]:
    """The ssh command to a node, as its owner types it."""
    state = inventory.usable_state(paths)
    if name not in state.nodes:
        raise LabError(f"no node {name!r} in this lab; it has {', '.join(state.nodes)}")
    return _ssh(paths, state, name, command)


def _ssh(paths: Paths, state: LabState, name: str, command: list[str]) -> list[str]:
    options = inventory.ssh_options(paths, state)
    return [
        "ssh",
        "-F",
        "none",
        "-i",
        str(paths.ssh_key),
        *options,
        f"{NODE_USER}@{state.nodes[name].address}",
        *command,
    ]


def exec_argv(paths: Paths, name: str, command: list[str]) -> list[str]:
    """`command` as root inside a node, or, as `lan`, on the LAN but on no node."""
    lab = Lab.load(paths)
    return lab.kind.outsider_argv(command) if name == "lan" else lab.node(name).exec_argv(command)


def wait_for_login(lab: Lab, names: list[str]) -> None:
    """Until every node lets its owner in and runs a command. A node that does not boot is named, with where to look."""
    deadline = time.monotonic() + lab.kind.boot_patience
    for name in names:
        if not lab.state.nodes[name].cable:
            continue
        login = _ssh(lab.paths, lab.state, name, ["true"])
        login[1:1] = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]
        while (
            tried := subprocess.run(login, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        ).returncode != 0:
            console = lab.paths.logs / f"{name}.log"
            if not lab.node(name).is_on():
                raise LabError(f"{name} went off while it booted; its console: {console}")
            if time.monotonic() > deadline:
                words = tried.stderr.strip().splitlines() or ["no message"]
                raise LabError(f"{name} does not answer SSH: {words[-1]}; its console: {console}")
            time.sleep(0.2)


def _create(lab: Lab, nodes: list[Node]) -> None:
    with ThreadPoolExecutor(max_workers=cpu_count() or 1) as pool:
        try:
            list(pool.map(lambda node: node.create(), nodes))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            lab.kind.sweep()  # the threads wait for commands that heard nothing of the interrupt
            raise
