"""What the head serves to people: on which address, which port, and to whom."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from .inventory import Inventory, shown
from .values import number

LOOPBACK = "127.0.0.1"


def check(inventory: Inventory) -> Iterator[str]:
    for head in inventory.groups.get("head", [])[:1]:
        if head in inventory.members:
            yield from address(inventory, head)
            yield from port(inventory, head)
            yield from visitors(inventory, head)


def address(inventory: Inventory, head: str) -> Iterator[str]:
    value, own = inventory.get(head, "tensorboard_address"), inventory.get(head, "cluster_ip")
    if value is not None and value not in (LOOPBACK, own):
        where = inventory.at(head, "tensorboard_address")
        yield (
            f"{where}tensorboard_address is {shown(value)}: write the head's own address on the cluster network "
            f"({own}), or {LOOPBACK}, where it is seen through SSH alone"
        )


def port(inventory: Inventory, head: str) -> Iterator[str]:
    value = inventory.get(head, "tensorboard_port")
    where = f"{inventory.at(head, 'tensorboard_port')}tensorboard_port is {shown(value)}"
    if not number(1024, 65535)(value):
        yield f"{where}: write a port number from 1024 to 65535, such as 6006"
    elif str(value) in {str(inventory.get(head, other)) for other in ("rendezvous_port", "ansible_port")}:
        yield f"{where}, which the head has for something else: write a free one, such as 6006"


def visitors(inventory: Inventory, head: str) -> Iterator[str]:
    value = inventory.get(head, "tensorboard_from")
    if not isinstance(value, list):  # another rule says so
        return
    where = f"{inventory.at(head, 'tensorboard_from')}tensorboard_from"
    for source in value:
        if source != "any" and not network(source):
            yield f"{where} holds {shown(source)}: write addresses or networks, such as 192.168.1.0/24, or any"
    if value and inventory.get(head, "tensorboard_address") == LOOPBACK:
        yield (
            f"{where} lets others in, and tensorboard_address is {LOOPBACK}: write the head's own address there "
            f"({inventory.get(head, 'cluster_ip')}), or leave tensorboard_from empty"
        )


def network(value: Any) -> bool:
    try:
        ipaddress.ip_network(str(value))
        return True
    except ValueError:
        return False
