"""What shows only when all answers lie side by side: clocks, and machines that are one and the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .answer import Finding, error

SET_CLOCK = "sudo timedatectl set-ntp true, or sudo date --set='...'"
NEW_MACHINE_ID = "sudo rm /etc/machine-id && sudo systemd-machine-id-setup, then reboot"
NEW_HOST_KEYS = "sudo rm /etc/ssh/ssh_host_* && sudo dpkg-reconfigure openssh-server"


def compare(
    answers: Mapping[str, Mapping[str, Any]], fatal_above: float, warn_above: float
) -> Iterator[tuple[str, Finding]]:
    """Yield names and findings; `answers` are those of probe_node, of which a node not reached gave none."""
    there = {name: answer for name, answer in answers.items() if answer.get("identity")}
    yield from clocks({name: answer["offset"] for name, answer in there.items()}, fatal_above, warn_above)
    yield from twins({name: answer["identity"] for name, answer in there.items()})
    yield from nobodies({name: answer["accounts"] for name, answer in there.items()})


def offset(before: float, there: float, after: float) -> float:
    """Return by how much a clock differs at least: the answer was given somewhere between two times here."""
    if there < before:
        return there - before
    return max(0.0, there - after)


def clocks(offsets: Mapping[str, float], fatal_above: float, warn_above: float) -> Iterator[tuple[str, Finding]]:
    """Yield nodes whose clock differs from this machine's, or this machine's that differs from all of theirs."""
    wrong = {name: value for name, value in offsets.items() if abs(value) > warn_above}
    if len(wrong) > 1 and len(wrong) == len(offsets) and max(wrong.values()) - min(wrong.values()) <= warn_above:
        value = next(iter(wrong.values()))
        yield (
            "this machine",
            Finding(abs(value) > fatal_above, f"its clock is {way(-value)} all nodes': set it: {SET_CLOCK}"),
        )
        return
    for name, value in wrong.items():
        yield (
            name,
            Finding(abs(value) > fatal_above, f"its clock is {way(value)} this machine's: set it there: {SET_CLOCK}"),
        )


def way(seconds: float) -> str:
    size = abs(seconds)
    unit, length = ("h", 3600) if size >= 36000 else ("min", 60) if size >= 600 else ("s", 1)
    return f"{size / length:.0f} {unit} {'ahead of' if seconds > 0 else 'behind'}"


def twins(identities: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, Finding]]:
    """Yield nodes that are another one under a second name, or a copy of its disk.

    An identity is the machine id, the id of this boot and the public host key.
    """
    first: dict[tuple[str, str], str] = {}
    for name, identity in identities.items():
        owners = {kind: first.setdefault((kind, value), name) for kind, value in identity.items()}
        machine, boot, key = (owners.get(kind, name) for kind in ("machine", "boot", "key"))
        copy = "as copies of one disk have"
        if machine != name and boot == machine:
            yield name, error(f"is the same machine as {machine}: correct its address, or take one of them out")
        elif machine != name:
            yield name, error(f"has the machine id of {machine}, {copy}: there, {NEW_MACHINE_ID}")
        elif key != name:
            yield name, error(f"has the SSH host key of {key}, {copy}: there, {NEW_HOST_KEYS}")


def nobodies(accounts: Mapping[str, Mapping[str, bool]]) -> Iterator[tuple[str, Finding]]:
    """Yield an account that was asked for and is on none of the nodes. On some is enough: people log in differently."""
    for account in dict.fromkeys(account for asked in accounts.values() for account in asked):
        if not any(asked.get(account) for asked in accounts.values()):
            yield (
                f"python_env_shell_users holds {account}",
                error("no node has an account of that name: correct it in the inventory"),
            )
