"""What the head serves to people: on which address, which port, and to whom."""

from __future__ import annotations

from collections.abc import Iterator

from . import sources
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
    where = f"{inventory.at(head, 'tensorboard_from')}tensorboard_from"
    yield from sources.misspelt(where, value)
    if value and inventory.get(head, "tensorboard_address") == LOOPBACK:
        yield (
            f"{where} lets others in, and tensorboard_address is {LOOPBACK}: write the head's own address there "
            f"({inventory.get(head, 'cluster_ip')}), or leave tensorboard_from empty"
        )
