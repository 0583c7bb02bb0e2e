"""Numbers, lists and other values: of the type and in the range that the roles can use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.parsing.vault import EncryptedString

from .inventory import Inventory, in_quotes, shown

PROXIES = {"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"}
# Interfaces that exist on many machines and never lead to another one.
INNER = re.compile(r"lo|docker\d*|br-[0-9a-f]{12}|veth.*|virbr\d+.*|lxcbr\d+|podman\d+|cni\d+")
# The members have these in common, or they are no cluster.
SAME = (
    *("cluster_prefix", "cluster_user", "cluster_uid", "cluster_gid", "rendezvous_port", "python_env_variant"),
    *("cluster_shared_path", "cluster_state_path", "cluster_env_path", "cluster_nfs_source"),
)
EXPECTED = {
    "int": "write a whole number",
    "float": "write a number",
    "bool": "write true or false",
    "list": "write a list, such as [one, two], or [] for none",
    "dict": "write names with values, such as {name: value}, or {} for none",
    "str": "write a text",
    "path": "write a path",
}


def number(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: bool(re.fullmatch(r"[0-9]{1,10}", str(value))) and low <= int(value) <= high


def account_number(value: Any) -> bool:
    """Neither the system's numbers, nor nobody's, nor those that systemd and containers give away."""
    return number(1000, 60000)(value) or number(65536, 524287)(value) or number(1879048192, 4294967293)(value)


def interface(value: Any) -> bool:
    if re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", str(value)):
        return True
    return bool(re.fullmatch(r"[^\s/:]{1,15}", str(value))) and not INNER.fullmatch(str(value))


def switch(value: Any) -> bool:
    """An INI file has false only as a text, and so has -e."""
    try:
        boolean(value)
    except TypeError:
        return False
    return True


def nfs_source(value: Any) -> bool:
    """A name or an IPv4 address, or an IPv6 one in brackets, and an absolute path there."""
    return value == "" or bool(re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):/\S*", str(value)))


# What each value must be, and what to write else. Types of the roles' own options are in their specifications.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "cluster_uid": (account_number, "write a number from 1000 to 60000 that is free on every node, such as 2600"),
    "cluster_gid": (account_number, "write a number from 1000 to 60000 that is free on every node, such as 2600"),
    "rendezvous_port": (number(1024, 65535), "write a port number from 1024 to 65535, such as 29500"),
    "cluster_mtu": (
        lambda value: str(value) == "0" or number(576, 65535)(value),
        "write the largest packet, a number from 576 to 65535, or 0 for what the interface has",
    ),
    "ansible_port": (number(1, 65535), "write the number of sshd's port, usually 22"),
    "nproc_per_node": (number(1, 64), "write the number of processes, 1 or more"),
    "omp_num_threads": (number(1, 1024), "write the number of threads, 1 or more"),
    "lan_interface": (
        interface,
        "write one interface that leads to the others, by its name in 'ip link' there or its MAC",
    ),
    "cluster_nfs_source": (
        nfs_source,
        "write the server and the path that it exports, such as 192.168.1.5:/volume1/minos, or '' for none",
    ),
}


SWITCHES = ("static_ip", "local_only", "cluster_over_internet")


def check(inventory: Inventory, options: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Check all values that have a rule; `options` are those of the roles, as their specifications have them."""
    for host in inventory.members:
        written = inventory.written(host)
        yield from unresolved(inventory, host, written)
        for name in written:
            if name in options:
                yield from typed(inventory, host, name, options[name])
    for name, (sound, fix) in RULES.items():
        for host, value in inventory.each(name):
            if isinstance(value, bool) or not sound(value):
                yield f"{inventory.at(host, name)}{name} is {shown(value)}: {fix}"
    for name in SWITCHES:
        for host, value in inventory.each(name):
            if not switch(value):
                yield f"{inventory.at(host, name)}{name} is {shown(value)}: write true or false"
    yield from ports(inventory)
    yield from proxies(inventory)
    yield from agreement(inventory)


def unresolved(inventory: Inventory, host: str, written: list[str]) -> Iterator[str]:
    """Find values that are empty or refer to something that does not exist."""
    for name in written:
        if not name.startswith(("cluster_", "ansible_", *RULES, *SWITCHES)):
            continue
        try:
            value = inventory.resolve(host, name)
        except AnsibleError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            vault = isinstance(inventory.raw[host][name], EncryptedString)
            fix = "give the vault's password with --ask-vault-pass" if vault else "correct what it refers to"
            yield f"{inventory.at(host, name)}{name} cannot be worked out ({reason}): {fix}"
            continue
        if value is None:
            yield f"{inventory.at(host, name)}{name} has no value: write one, '' for an empty one, or take the line out"


def typed(inventory: Inventory, host: str, name: str, option: Mapping[str, Any]) -> Iterator[str]:
    """Hold an option of a role against its specification. A text is no list, although Ansible would split it."""
    value = inventory.get(host, name)
    if value is None or name in RULES:
        return
    kind, choices = option["type"], option.get("choices")
    container = {"list": list, "dict": dict}.get(kind)
    spec = {name: {key: option[key] for key in ("type", "elements", "choices") if key in option}}
    fits = ArgumentSpecValidator(spec).validate({name: value})
    if (container and not isinstance(value, container)) or fits.error_messages:
        words = ", ".join(str(choice) or "''" for choice in choices or ())
        fix = f"write one of {words}" if choices else in_quotes(name, value) or EXPECTED.get(kind, f"write a {kind}")
        yield f"{inventory.at(host, name)}{name} is {shown(value)}: {fix}"


def ports(inventory: Inventory) -> Iterator[str]:
    for host, value in inventory.each("rendezvous_port"):
        if str(value) == str(inventory.get(host, "ansible_port") or 22) and number(1024, 65535)(value):
            where = inventory.at(host, "rendezvous_port")
            yield f"{where}rendezvous_port is {shown(value)}, sshd's port: write a free one, such as 29500"


def proxies(inventory: Inventory) -> Iterator[str]:
    """Names and addresses of proxies; the addresses are not repeated here, they may hold a password."""
    for host, value in inventory.each("cluster_proxy_env"):
        where = f"{inventory.at(host, 'cluster_proxy_env')}cluster_proxy_env"
        if not isinstance(value, Mapping):
            yield f"{where} has no names: write {{http_proxy: 'http://10.0.0.1:3128'}}, or {{}} for none"
            continue
        for name, address in value.items():
            if name.lower() not in PROXIES:
                yield f"{where} holds {shown(name)}: its names are {', '.join(sorted(PROXIES))}"
            elif name.lower() != "no_proxy" and not usable_proxy(str(address)):
                yield f"{where}: {name} is no address of a proxy: write scheme, host and port, such as http://10.0.0.1:3128"


def usable_proxy(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https", "socks5", "socks5h") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def agreement(inventory: Inventory) -> Iterator[str]:
    for name in SAME:
        found: dict[str, str] = {}
        for host, value in inventory.each(name):
            found.setdefault(str(value), host)
        if len(found) > 1:
            odd = list(found.values())[1]
            each = ", ".join(f"{shown(value)} on {host}" for value, host in found.items())
            yield f"{inventory.at(odd, name)}{name} is {each}: write it once for all, in cluster's vars"
