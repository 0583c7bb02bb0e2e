"""Choose addresses for a lab that hide nothing the host can reach."""

import json
from collections.abc import Iterator
from ipaddress import IPv4Network

from lab.config import LabError


def candidates() -> Iterator[IPv4Network]:
    """Private /24 networks, the ones that home routers, Docker and libvirt do not use first."""
    yield from IPv4Network("10.213.64.0/18").subnets(new_prefix=24)
    yield from IPv4Network("172.29.192.0/18").subnets(new_prefix=24)
    yield from IPv4Network("192.168.192.0/18").subnets(new_prefix=24)


def choose(taken: list[IPv4Network], count: int) -> list[IPv4Network]:
    """`count` different /24 networks that overlap none of `taken`."""
    free = []
    for network in candidates():
        if not any(network.overlaps(other) for other in taken):
            free.append(network)
            if len(free) == count:
                return free
    raise LabError("no free private /24 for the lab: the host's routes (`ip route`) cover all that it would use")


def routed(ip_json: str) -> list[IPv4Network]:
    """The networks in the output of `ip -j -4 route show table all`, the default route left out."""
    networks = []
    for route in json.loads(ip_json or "[]"):
        if route.get("dst", "default") != "default":
            network = IPv4Network(route["dst"], strict=False)
            if network.prefixlen > 1:  # VPNs split the default route into two halves
                networks.append(network)
    return networks


def nameservers(resolv_conf: str) -> list[IPv4Network]:
    """The host's IPv4 name servers as /32 networks: reached by the default route, hence in no other list."""
    found = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver" and ":" not in words[1]:
            found.append(IPv4Network(words[1]))
    return found
