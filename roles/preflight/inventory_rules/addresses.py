"""Addresses: IPv4, each machine its own, all in one subnet; the router, the name servers and the ways to elsewhere."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean

from .inventory import Inventory, in_quotes, shown

EXAMPLE = "write an IPv4 address such as 192.168.1.100"
ROUTE = "{to: 10.1.0.0/16, via: 192.168.1.2}"


def check(inventory: Inventory) -> Iterator[str]:
    yield from ways_in(inventory)
    yield from gateways(inventory)
    yield from members(inventory)
    yield from nameservers(inventory)
    yield from routes(inventory)


def ipv4(value: Any) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(str(value))
    except ValueError:
        return None


def subnet(inventory: Inventory, host: str, by: str = "cluster_gateway") -> ipaddress.IPv4Network | None:
    """Return the cluster's subnet as a member sees it; None where no gateway tells it, or what else is in `by`."""
    address, prefix = ipv4(inventory.get(host, by)), str(inventory.get(host, "cluster_prefix"))
    if address is None or not prefix.isdigit() or not 8 <= int(prefix) <= 30:
        return None
    return ipaddress.IPv4Interface(f"{address}/{prefix}").network


def ways_in(inventory: Inventory) -> Iterator[str]:
    """Check ansible_host by itself: it may be a name or lie elsewhere where cluster_ip says the cluster's address."""
    for host, value in inventory.each("ansible_host"):
        if fix := badly_put(str(value)):
            yield f"{inventory.at(host, 'ansible_host')}ansible_host is {shown(value)}: {fix}"
        elif address_key(inventory, host) == "cluster_ip" and re.search(r"[^A-Za-z0-9_.:%-]", str(value)):
            yield (
                f"{inventory.at(host, 'ansible_host')}ansible_host is {shown(value)}: "
                "write an address or a name that SSH can reach"
            )


def badly_put(text: str) -> str:
    """Say what to write where an address stands together with something that has a place of its own."""
    if text != text.strip():
        return f"write {text.strip()}, without the spaces"
    if "@" in text:
        user, _, address = text.rpartition("@")
        return f"write only {address} there, and 'ansible_user: {user}' beside it"
    if re.fullmatch(r"[^:]+:[0-9]+", text):
        address, _, port = text.partition(":")
        return f"write only {address} there, and 'ansible_port: {port}' beside it"
    return ""


def address_key(inventory: Inventory, host: str) -> str:
    """Return the variable that says a member's address on the cluster network."""
    return "cluster_ip" if "cluster_ip" in inventory.written(host) else "ansible_host"


def gateways(inventory: Inventory) -> Iterator[str]:
    for host in inventory.members:
        prefix = inventory.get(host, "cluster_prefix")
        if prefix is not None and (not str(prefix).isdigit() or not 8 <= int(prefix) <= 30):
            yield (
                f"{inventory.at(host, 'cluster_prefix')}cluster_prefix is {shown(prefix)}: "
                f"write the length of the netmask, 8 to 30 ({length(str(prefix))})"
            )
        gateway = inventory.get(host, "cluster_gateway")
        if gateway in ("", None):
            continue
        where = f"{inventory.at(host, 'cluster_gateway')}cluster_gateway is {shown(gateway)}"
        if ipv4(gateway) is None:
            yield f"{where}: write the router's IPv4 address, such as 192.168.1.1, or '' for none"
        elif (network := subnet(inventory, host)) and ipv4(gateway) in ends(network):
            yield f"{where}, which {ends(network)[ipv4(gateway)]} {network}: write the router's own address"


def length(mask: str) -> str:
    """Return the prefix of a netmask that was written out."""
    try:
        return f"{mask} is {ipaddress.IPv4Network(f'0.0.0.0/{mask}').prefixlen}"
    except ValueError:
        return "usually 24"


def ends(network: ipaddress.IPv4Network) -> dict[ipaddress.IPv4Address, str]:
    return {
        network.network_address: "is the address of the whole subnet",
        network.broadcast_address: "is the broadcast address of",
    }


def members(inventory: Inventory) -> Iterator[str]:
    """Check the address of each member on the cluster network, alone, in its subnet and against the others."""
    seen: dict[ipaddress.IPv4Address, str] = {}
    doors: dict[tuple[str, str], str] = {}
    for host in inventory.members:
        key = address_key(inventory, host)
        value = inventory.get(host, "cluster_ip")
        if value is None:
            if key not in inventory.written(host) and not ipv4(host) and host not in inventory.groups:
                yield f"{inventory.at_host(host)}has no address: write 'ansible_host: 192.168.1.100' below it"
            continue
        address, where = ipv4(value), f"{inventory.at(host, key)}{key} is {shown(value)}"
        if address is None:
            if key == "cluster_ip" or not badly_put(str(value)):
                yield f"{where}: {remedy(value)}"
            continue
        if not (address.is_loopback and boolean(inventory.get(host, "local_only"), strict=False)):
            yield from alone(address, where)
        if (other := seen.setdefault(address, host)) != host:
            yield f"{where}, already that of {other}: every node needs an address of its own"
            continue
        door = (str(inventory.get(host, "ansible_host")), str(inventory.get(host, "ansible_port") or 22))
        if key == "cluster_ip" and door[0] != "None" and (other := doors.setdefault(door, host)) != host:
            yield (
                f"{inventory.at(host, 'ansible_host')}ansible_host is {shown(door[0])}, the way to {other}: "
                "every node needs one of its own, or its own ansible_port"
            )
        yield from placed(inventory, host, address, where)


def remedy(value: Any) -> str:
    """Say what to write instead of something that is no IPv4 address."""
    text = str(value)
    if ipv4(text.partition("/")[0]):
        return f"write {text.partition('/')[0]}; the length of the netmask is cluster_prefix"
    if ":" in text:
        return f"IPv6 does not work here: {EXAMPLE}"
    if re.fullmatch(r"[0-9]+(\.[0-9]+){3}", text):
        plain = ".".join(str(int(part)) for part in text.split("."))
        return f"write {plain}, without leading zeros" if ipv4(plain) else EXAMPLE
    if re.search(r"[a-z]", text, re.IGNORECASE) and not text[0].isdigit():
        return f"{EXAMPLE} ('getent ahostsv4 {text}' shows it, where the name is known)"
    return EXAMPLE


def alone(address: ipaddress.IPv4Address, where: str) -> Iterator[str]:
    for wrong, what in (
        (address.is_loopback, "every machine's address for itself"),
        (address.is_unspecified, "no machine's address"),
        (address.is_multicast or (address.is_reserved and not address.is_private), "no machine's address"),
        (address.is_link_local, "an address that changes by itself (169.254...)"),
    ):
        if wrong:
            yield f"{where}, {what}: write the one by which the other nodes reach it"
            return


def placed(inventory: Inventory, host: str, address: ipaddress.IPv4Address, where: str) -> Iterator[str]:
    network = subnet(inventory, host)
    if network is None or address.is_loopback or address.is_unspecified or address.is_multicast:
        return
    if address not in network:
        yield (
            f"{where}, outside {network} (cluster_gateway {inventory.get(host, 'cluster_gateway')}, cluster_prefix "
            f"{inventory.get(host, 'cluster_prefix')}): correct the address, the gateway or the prefix"
        )
    elif address in ends(network):
        yield f"{where}, which {ends(network)[address]} {network}: write the machine's own address"
    elif address == ipv4(inventory.get(host, "cluster_gateway")):
        yield f"{where}, the router's (cluster_gateway): write the machine's own address"


def nameservers(inventory: Inventory) -> Iterator[str]:
    for host, value in inventory.each("cluster_nameservers"):
        where = f"{inventory.at(host, 'cluster_nameservers')}cluster_nameservers"
        if not isinstance(value, list):
            fix = in_quotes("cluster_nameservers", value) or "write a list, such as [192.168.1.1], or [] for none"
            yield f"{where} is {shown(value)}: {fix}"
            continue
        for server in value:
            try:
                ipaddress.ip_address(str(server))
            except ValueError:
                yield f"{where} holds {shown(server)}: write the address of a name server, such as 192.168.1.1"


def routes(inventory: Inventory) -> Iterator[str]:
    for host, value in inventory.each("cluster_routes"):
        where = f"{inventory.at(host, 'cluster_routes')}cluster_routes"
        if not isinstance(value, list):
            fix = in_quotes("cluster_routes", value) or f"write a list, such as [{ROUTE}], or [] for none"
            yield f"{where} is {shown(value)}: {fix}"
            continue
        network = subnet(inventory, host) or subnet(inventory, host, by="cluster_ip")
        for route in value:
            if not isinstance(route, Mapping) or set(route) != {"to", "via"}:
                yield f"{where} holds {shown(route)}: write to and via, and nothing else: {ROUTE}"
            elif fix := no_network(str(route["to"])):
                yield f"{where} has a route to {shown(route['to'])}: {fix}"
            elif (via := ipv4(route["via"])) is None:
                yield (
                    f"{where}: the route to {route['to']} goes through {shown(route['via'])}: "
                    "write the IPv4 address of the machine that knows the way, such as 192.168.1.2"
                )
            elif network and via not in network:
                yield (
                    f"{where}: the route to {route['to']} goes through {shown(route['via'])}, outside {network}: "
                    "write the address of a machine in the cluster's subnet"
                )


def no_network(text: str) -> str:
    """Say what to write where no network is, or a machine's address in it; empty where nothing is wrong."""
    try:
        network = ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        return "write a network such as 10.1.0.0/16; the way to all others is cluster_gateway"
    if network.prefixlen == 0:
        return "the way to all others is cluster_gateway: write it there"
    return "" if text in (str(network), str(network.network_address)) else f"write {network}"
