"""A VM node's cable: from QEMU to the bridge of network.py, all of it inside the lab's network namespace.

    QEMU - NODEt (tap) - NODEb (bridge) - NODEw = NODE (veth) - lan (bridge)

The veth is what a container node has too; it is there because a link can be limited both ways only at two ends.
"""

from lab import network, process
from lab.state import NodeState


def name(node: str) -> str:
    """The tap device that QEMU opens."""
    return f"{node}t"


def plug_in(lab: str, node: str, settings: NodeState) -> None:
    unplug(lab, node)
    batch = f"""
        link add {node} type veth peer name {_wire(node)}
        link add {_box(node)} type bridge
        tuntap add dev {name(node)} mode tap
        link set {name(node)} master {_box(node)}
        link set {_wire(node)} master {_box(node)}
        link set {node} master {network.BRIDGE}
        link set {name(node)} up
        link set {_wire(node)} up
        link set {_box(node)} up
    """
    process.run(lab, "ip", "-n", network.lan_namespace(lab), "-batch", "-", stdin=batch)
    set_bandwidth(lab, node, settings.bandwidth)
    network.set_cable(lab, node, settings.cable)


def unplug(lab: str, node: str) -> None:
    """Remove what is there of it; nothing that was under way arrives."""
    if network.exists(network.lan_namespace(lab)):
        for device in (node, _box(node), name(node)):  # the wire goes with its other end
            process.run(lab, "ip", "-n", network.lan_namespace(lab), "link", "del", device, check=False)


def set_bandwidth(lab: str, node: str, rate: str | None) -> None:
    lan = network.lan_namespace(lab)
    network.limit(lab, [(lan, node), (lan, _wire(node))], rate)


def _wire(node: str) -> str:
    return f"{node}w"


def _box(node: str) -> str:
    return f"{node}b"
