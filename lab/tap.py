"""A VM node's cable: what a container has, with QEMU's tap device behind it on a bridge of their own.

    QEMU - tap - box (bridge) - lan0 = NODE (veth) - lan (bridge)
    |------- the node's network namespace -------|   |- the lab's -|

Not in the lab's namespace: where the host's kernel shows bridged packets to its firewall (br_netfilter), the router's
own answers would pass its connection tracking a second time and get another port.
"""

from lab import network, process
from lab.state import NodeState

TAP = "tap"


def plug_in(lab: str, node: str, settings: NodeState) -> None:
    """A fresh namespace with the tap device that QEMU, started in it, opens."""
    network.plug_in(lab, node, settings)
    namespace = network.node_namespace(lab, node)
    process.run(lab, *network.inside(namespace, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"))
    # The address that plug_in gave to the veth is that of the guest's card.
    batch = f"""
        link add box type bridge
        tuntap add dev {TAP} mode tap
        link set {network.NODE_NIC} address {network.mac(lab, f"{node}/veth")}
        link set {network.NODE_NIC} master box
        link set {TAP} master box
        link set {network.NODE_NIC} up
        link set {TAP} up
        link set box up
    """
    process.run(lab, "ip", "-n", namespace, "-batch", "-", stdin=batch)
