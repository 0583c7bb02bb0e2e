"""Firewalls of the owner's that ufw does not live beside."""

from __future__ import annotations

from collections.abc import Iterator

from .answer import Answer, Asked, Finding, error, warning

INSTEAD = "or install and start firewalld, which keeps the rules then"


def check(answer: Answer, asked: Asked) -> Iterator[Finding]:
    if not asked.ssh:  # a machine alone keeps its firewall as it is
        return
    found = answer.lines("firewalls")
    if "netfilter-persistent" in found:
        yield error(
            "its firewall is iptables-persistent, which apt would take away for ufw, and its rules with it: write them "
            f"as rules of ufw, then sudo apt purge netfilter-persistent; {INSTEAD}"
        )
    if "nftables" in found:
        yield warning(
            "nftables.service is enabled there: at boot its rules and those of ufw may overwrite each other: "
            f"sudo systemctl disable nftables, {INSTEAD}"
        )
