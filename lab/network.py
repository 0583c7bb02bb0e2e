"""The lab's LAN: one network namespace with a bridge and a router in it, one namespace per node that is on.

Nothing of it is in the host's own namespace: no interface, no route, no firewall rule, no forwarding. The way out
is a process (slirp4netns) that opens the connections as an ordinary program of the host, so a host firewall
that drops forwarded packets does not matter, and an address of the lab leads nowhere once the lab is gone.
"""

import contextlib
import hashlib
import os
import signal
import time
from pathlib import Path

from lab import process
from lab.config import LabError, Paths
from lab.files import mount_points
from lab.state import LabState, NodeState, alone_on_this_host

NETNS = Path("/run/netns")
BRIDGE = "lan"
UPLINK = "uplink"
END_PATIENCE = 10.0  # seconds for killed processes to go
NODE_NIC = "lan0"
SLIRP_ROLE = "uplink"
MADE_NETNS = Path("/run/minos-lab/made-run-netns")


def lan_namespace(lab: str) -> str:
    return f"minos-{lab}"


def node_namespace(lab: str, node: str) -> str:
    return f"minos-{lab}.{node}"  # neither name holds a dot or a hyphen: no two labs can collide


def namespaces(lab: str) -> list[str]:
    """The lab's network namespaces that exist, whatever the state file says."""
    ours = lan_namespace(lab)
    names = sorted(entry.name for entry in NETNS.iterdir()) if NETNS.is_dir() else []
    return [name for name in names if name == ours or name.startswith(ours + ".")]


def exists(namespace: str) -> bool:
    """True for a namespace one can enter: `ip netns add` killed half-way leaves an empty file."""
    with contextlib.suppress(FileNotFoundError):
        return (NETNS / namespace).stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    return False


def inside(namespace: str, *argv: str) -> list[str]:
    """`argv` run within a network namespace (not `ip netns exec`, which also mounts)."""
    return ["nsenter", f"--net={NETNS / namespace}", *argv]


def host_of_uplink(state: LabState) -> str:
    """Address under which the nodes reach 127.0.0.1 of the host, where that is open at all."""
    return _uplink_address(state, 2)


def raise_lan(paths: Paths, state: LabState, *, host_loopback: bool, ipv6: bool) -> None:
    """Bring up whatever is missing of bridge, router and way out.

    `host_loopback`: let the nodes reach the host's 127.0.0.1, needed only for a proxy that listens there.
    `ipv6`: the router has an IPv6 address on the LAN; it routes none.
    """
    lab, lan = paths.lab, lan_namespace(paths.lab)
    if not exists(lan):
        _add_namespace(lab, lan)
    if BRIDGE not in process.run(lab, "ip", "-n", lan, "-br", "link", "show", "type", "bridge"):
        process.run(lab, "ip", "-n", lan, "link", "add", BRIDGE, "type", "bridge")
    process.run(lab, *inside(lan, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.disable_ipv6=1"))
    if ipv6:
        process.run(lab, *inside(lan, "sysctl", "-qw", f"net.ipv6.conf.{BRIDGE}.disable_ipv6=0"))
    process.run(
        lab, "ip", "-n", lan, "-batch", "-",
        stdin=f"link set lo up\naddress replace {state.gateway}/24 dev {BRIDGE}\nlink set {BRIDGE} up\n",
    )  # fmt: skip
    process.run(lab, *inside(lan, "nft", "-f", "-"), stdin=_router_rules(state))
    if not process.find(lab, SLIRP_ROLE):
        loopback = [] if host_loopback else ["--disable-host-loopback"]
        process.spawn(
            lab,
            SLIRP_ROLE,
            ["slirp4netns", "--netns-type=path", "--configure", "--mtu=1500", f"--cidr={state.uplink}", *loopback,
             str(NETNS / lan), UPLINK],
            log=paths.logs / "uplink.log",
        )  # fmt: skip


def _router_rules(state: LabState) -> str:
    """Masquerade to the outside, and name service on the gateway's address, as a home router has it."""
    resolver = _uplink_address(state, 3)
    return f"""
        table ip router
        delete table ip router
        table ip router {{
            chain out {{
                type nat hook postrouting priority srcnat
                oifname "{UPLINK}" masquerade
            }}
            chain dns {{
                type nat hook prerouting priority dstnat
                ip daddr {state.gateway} udp dport 53 dnat to {resolver}
                ip daddr {state.gateway} tcp dport 53 dnat to {resolver}
            }}
        }}
    """


def _uplink_address(state: LabState, host: int) -> str:
    """slirp4netns answers on .2 (the host) and .3 (its resolver) of its network."""
    return f"{state.uplink.rpartition('.')[0]}.{host}"


def plug_in(lab: str, node: str, settings: NodeState) -> None:
    """Give a node that starts a fresh network namespace with its NIC in it.

    Fresh at every start: a machine that lost power has no firewall rules and no half-closed connections left.
    """
    lan, own = lan_namespace(lab), node_namespace(lab, node)
    unplug(lab, node)
    _add_namespace(lab, own)
    process.run(
        lab, "ip", "-n", lan, "link", "add", node, "type", "veth",
        "peer", "name", NODE_NIC, "address", mac(lab, node), "netns", own,
    )  # fmt: skip
    process.run(lab, "ip", "-n", lan, "link", "set", node, "master", BRIDGE)
    set_bandwidth(lab, node, settings.bandwidth)
    set_cable(lab, node, settings.cable)


def unplug(lab: str, node: str) -> None:
    """Remove a node's NIC and namespace; nothing that its sockets still wanted to say gets out."""
    if exists(lan_namespace(lab)):
        process.run(lab, "ip", "-n", lan_namespace(lab), "link", "del", node, check=False)
    delete_namespace(lab, node_namespace(lab, node))


def set_cable(lab: str, node: str, plugged: bool) -> None:
    """Pull or plug at the switch's end, so that the node sees its carrier go."""
    process.run(lab, "ip", "-n", lan_namespace(lab), "link", "set", node, "up" if plugged else "down")


def set_bandwidth(lab: str, node: str, rate: str | None) -> None:
    """Limit a node's link in both directions, None: no limit. By tbf, which every kernel has (netem is rarer)."""
    ends = ((lan_namespace(lab), node), (node_namespace(lab, node), NODE_NIC))
    for namespace, nic in ends:
        if rate is None:
            process.run(lab, "tc", "-n", namespace, "qdisc", "del", "dev", nic, "root", check=False)
        else:
            process.run(
                lab, "tc", "-n", namespace, "qdisc", "replace", "dev", nic, "root",
                "tbf", "rate", rate, "burst", str(_burst(rate)), "latency", "50ms",
            )  # fmt: skip


def rate_in_bits(rate: str) -> float:
    """ "2.5gbit" -> 2.5e9 bits per second."""
    unit = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}[rate[-4:]]
    return float(rate[:-4]) * unit


def _burst(rate: str) -> int:
    """Bytes that tbf may send at once: 4 ms worth (one tick at 250 Hz), no less than ten full frames."""
    return max(15140, int(rate_in_bits(rate) / 8 / 250))


def mac(lab: str, node: str) -> str:
    """The same NIC has the same address at every start; 02 marks it as locally administered."""
    return "02:" + hashlib.sha256(f"{lab}/{node}".encode()).digest()[:5].hex(":")


def _add_namespace(lab: str, namespace: str) -> None:
    delete_namespace(lab, namespace)
    with alone_on_this_host():  # another lab that goes down now would take the mount away
        if str(NETNS) not in mount_points():
            # `ip netns` will mount it onto itself; remember that it was us, to take it back at the end.
            MADE_NETNS.parent.mkdir(parents=True, exist_ok=True)
            MADE_NETNS.touch()
        process.run(lab, "ip", "netns", "add", namespace)


def delete_namespace(lab: str, namespace: str) -> None:
    """With all that lives in it; also where only the empty file of an interrupted `ip netns add` is there."""
    path = NETNS / namespace
    if path.exists():
        if exists(namespace):
            _end_processes_in(namespace)
            process.run(lab, "ip", "netns", "delete", namespace)
        path.unlink(missing_ok=True)


def _end_processes_in(namespace: str) -> None:
    """Kill whatever lives in a namespace of the lab, the first process of a node included.

    A node outlives a systemd-nspawn that was killed, and `lab exec lan ...` may still run: without their namespace's
    name nobody would find them again.
    """
    inode = (NETNS / namespace).stat().st_ino
    deadline = time.monotonic() + END_PATIENCE
    while living := [pid for pid in _process_ids() if _network_of(pid) == inode]:
        if time.monotonic() > deadline:
            raise LabError(f"still alive in {namespace} after {END_PATIENCE:.0f} s: process {living[0]}")
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                try:
                    if _network_of(pid) == inode:  # still the one that was seen, not a new one with its number
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                finally:
                    os.close(descriptor)
        time.sleep(0.02)


def _process_ids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _network_of(pid: int) -> int | None:
    """Inode of a process's network namespace; None for one that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    return None


def lower_lan(lab: str) -> None:
    """Remove every namespace of the lab, and /run/netns itself where a lab was the first to need it."""
    for namespace in namespaces(lab):
        delete_namespace(lab, namespace)
    with alone_on_this_host():
        if MADE_NETNS.exists() and not (NETNS.is_dir() and any(NETNS.iterdir())):
            while str(NETNS) in mount_points():
                process.run(lab, "umount", NETNS)
            if NETNS.is_dir():  # one that was killed may have said that it makes it, and no more
                NETNS.rmdir()
            MADE_NETNS.unlink()
