"""From where others may come in: addresses and networks, spelt as the firewall spells them.

ufw turns 0.0.0.0/0 into no address at all, a netmask into a length, and a network's machine into the network. Read
back, such a rule is not the one that was asked for: it would be taken for an old one, and removed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from .inventory import Inventory, shown


def check(inventory: Inventory) -> Iterator[str]:
    for host, value in inventory.each("firewall_ssh_from"):
        yield from misspelt(f"{inventory.at(host, 'firewall_ssh_from')}firewall_ssh_from", value)


def misspelt(where: str, value: Any) -> Iterator[str]:
    """Check a list of addresses, networks and `any`; that it is a list, another rule says."""
    for source in value if isinstance(value, list) else []:
        if fix := instead_of(str(source)):
            yield f"{where} holds {shown(source)}: write {fix}"


def instead_of(source: str) -> str:
    """What to write for it; nothing where it stands as it should."""
    if source == "any":
        return ""
    try:
        network = ipaddress.ip_network(source, strict=False)
    except ValueError:
        return "addresses or networks, such as 192.168.1.0/24, or any"
    if network.prefixlen == 0:
        return "any, which is for IPv4 and IPv6"
    alone = network.prefixlen == network.max_prefixlen
    if source in (str(network), str(network.network_address) if alone else ""):
        return ""
    return str(network.network_address) if alone else str(network)
