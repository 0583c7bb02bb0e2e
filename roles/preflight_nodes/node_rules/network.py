"""The network: which interface holds the address, and by which the traffic to each peer really leaves."""

from __future__ import annotations

from collections.abc import Iterator

from .answer import Answer, Asked, Finding, error, warning


def check(answer: Answer, asked: Asked) -> Iterator[Finding]:
    links, wanted = answer.links, answer.interface(asked.interface)
    # Where a machine is met for the first time, by a name perhaps or on its WiFi, says nothing of what it shall have.
    settled = asked.address == asked.wanted
    holders = [name for name, addresses in links.items() if asked.address in addresses]
    listed = ", ".join(f"{name} ({' '.join(found) or 'no address'})" for name, found in links.items() if name != "lo")
    if wanted and wanted not in links:
        yield error(f"it has no interface {wanted}, only {listed}: set lan_interface to the one towards the others")
        return
    if not holders and not wanted and settled:
        yield error(
            f"no interface there holds {asked.address}, only {listed}: correct the address, or set lan_interface to "
            "the one that shall get it"
        )
        return
    if holders and wanted and wanted not in holders and settled:
        yield error(
            f"{asked.address} is on {holders[0]}, and lan_interface says {asked.interface}: correct one of them "
            f"(it has {listed})"
        )
        return
    if not (interface := wanted or next(iter(holders), "")):
        return
    if interface in answer.lines("wireless"):
        yield warning(
            f"{interface} is WiFi: gradients travel over it at every step, the slowest node sets the pace: use a cable"
        )
    if interface in holders:
        yield from ways(answer, asked, interface)


def ways(answer: Answer, asked: Asked, interface: str) -> Iterator[Finding]:
    names = {address: name for name, address in asked.members.items()}
    for peer, way in answer.routes.items():
        whom = f"{names.get(peer, 'a member')} ({peer})"
        out, through = way.get("dev", ""), way.get("gateway", "")
        if not out:
            yield error(f"it knows no way to {whom}: correct the address or the prefix of {interface} there")
        elif out != interface:
            yield error(
                f"traffic to {whom} leaves by {out}{f' through {through}' if through else ''}, not by {interface}, "
                f"which holds {asked.address}: take away that route or the other interface's address in this subnet "
                f"(ip route get {peer}), or correct cluster_ip"
            )
        elif way.get("prefsrc", asked.address) != asked.address:
            other = way["prefsrc"]
            yield error(
                f"traffic to {whom} leaves with the address {other}, and the others let {asked.address} in: take "
                f"{other} off {interface} there, make {asked.address} its first one, or correct cluster_ip"
            )
        elif through and asked.gateway:
            yield error(
                f"traffic to {whom} goes through the router {through} although both are in one subnet: correct "
                f"the prefix of {interface} there (ip route get {peer})"
            )
        elif through:
            yield warning(
                f"traffic to {whom} goes through the router {through}: it may be slow, and must let every port through"
            )
