"""Names of machines and accounts: the roles make them host names, lines of /etc/hosts and users of the nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .inventory import Inventory, shown

LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
# Accounts that every Debian and Ubuntu has: giving one of them to the training takes it from its owner.
TAKEN = (
    *("root", "daemon", "bin", "sys", "sync", "games", "man", "lp", "mail", "news", "uucp", "proxy", "www-data"),
    *("backup", "list", "irc", "nobody", "sshd", "messagebus", "systemd-network", "systemd-resolve", "_apt"),
    *("systemd-timesync", "_chrony", "sudo", "adm", "users", "ubuntu", "debian"),
)


def check(inventory: Inventory) -> Iterator[str]:
    yield from hosts(inventory)
    yield from service_user(inventory)
    yield from login_user(inventory)


def hosts(inventory: Inventory) -> Iterator[str]:
    seen: dict[str, str] = {}
    for name in inventory.members:
        where = inventory.at_host(name)
        labels = name.split(".")
        if name.lower() in ("localhost", "localhost.localdomain"):
            yield f"{where}is every machine's name for itself: give it another one, such as node1, and an ansible_host"
        elif labels[-1].isdigit():
            yield f"{where}is no host name: call it node1 or the like, and write 'ansible_host: {name}' below it"
        elif len(name) > 63 or not all(LABEL.fullmatch(label) for label in labels):
            yield f"{where}is no host name: use at most 63 letters, digits and '-', such as {suggested(name)}"
        elif name in inventory.groups:
            yield f"{where}is also the name of a group, and plays would take one for the other: rename the machine"
        if (other := seen.setdefault(name.lower(), name)) != name:
            yield f"{where}is the same host name as {other}: host names do not know capitals; rename one of them"


def suggested(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-") or "node1"


def service_user(inventory: Inventory) -> Iterator[str]:
    for host, name in inventory.each("cluster_user"):
        where = f"{inventory.at(host, 'cluster_user')}cluster_user is {shown(name)}"
        if not ACCOUNT.fullmatch(str(name)):
            yield f"{where}: write an account name of small letters, digits, '-' and '_', such as minos"
        elif name in TAKEN:
            yield f"{where}, an account that the system has already: write one of its own, such as minos"
        elif name == inventory.get(host, "ansible_user"):
            yield f"{where}, who also logs in (ansible_user): the training needs an account of its own, such as minos"


def login_user(inventory: Inventory) -> Iterator[str]:
    for host, name in inventory.each("ansible_user"):
        where = f"{inventory.at(host, 'ansible_user')}ansible_user is {shown(name)}"
        user, at, address = str(name).partition("@")
        if at and address in (host, str(inventory.get(host, "ansible_host"))):
            yield f"{where}: write only {user}; the address is ansible_host's"
        elif not str(name).strip() or re.search(r"\s", str(name)):
            yield f"{where}: write the name of the account that logs in, without spaces"
