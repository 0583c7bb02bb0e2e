"""Members that would talk over the internet: gradients, the store and NFS are not encrypted."""

from __future__ import annotations

from collections.abc import Iterator

from ansible.module_utils.parsing.convert_bool import boolean

from .addresses import address_key, ipv4
from .inventory import Inventory


def public(inventory: Inventory) -> list[str]:
    """Return the members whose address on the cluster network is a public one."""
    if len(inventory.members) < 2:
        return []
    addresses = {host: ipv4(inventory.get(host, "cluster_ip")) for host in inventory.members}
    return [host for host, address in addresses.items() if address and address.is_global]


def accepted(inventory: Inventory) -> bool:
    return all(boolean(value, strict=False) for _, value in inventory.each("cluster_over_internet"))


def check(inventory: Inventory) -> Iterator[str]:
    hosts = public(inventory)
    if hosts and not accepted(inventory):
        key = address_key(inventory, hosts[0])
        yield (
            f"{inventory.at(hosts[0], key)}{key} is a public address ({', '.join(hosts)}), and what the nodes say to "
            "each other is not encrypted: write each one's address on a private network or a VPN as cluster_ip, "
            "or 'cluster_over_internet: true' if it shall be so"
        )


def warning(inventory: Inventory) -> str:
    """Return a line for what has been accepted; empty where there is nothing to say."""
    hosts = public(inventory)
    return f"{', '.join(hosts)} talk over public addresses, unencrypted (cluster_over_internet)" if hosts else ""
