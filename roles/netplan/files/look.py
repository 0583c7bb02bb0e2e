"""Look at this machine's network before anything changes; prints one JSON object. Only Python's own library.

python3 look.py WANTED, a JSON object with the keys

    address (192.168.1.100/24), gateway, nameservers, mtu,
    interface (name, MAC, or empty: the one that holds the address, or else the way out)

The answer: links (name -> mac, addresses), interface, owner (networkd, NetworkManager, ifupdown or nobody), holds
(whether the address is on it now), gateways (ways out now) and problems, one line each. A question that needs a tool
that is not installed yet is left out.
"""

import ipaddress
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def links():
    found = {}
    for link in json.loads(output("ip", "-details", "-json", "address", "show") or "[]"):
        if link.get("link_type") != "ether":
            continue
        addresses = [f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if each["family"] == "inet"]
        facts = {"mac": link["address"].lower(), "addresses": addresses, "max_mtu": link.get("max_mtu", 0)}
        found[link["ifname"]] = facts | {"carrier": link.get("operstate") != "DOWN" and "UP" in link["flags"]}
    return found


def active(unit):
    return subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False).returncode == 0


def owner_of(interface):
    """Who configures it."""
    if active("NetworkManager"):
        for line in output("nmcli", "-t", "-f", "DEVICE,STATE", "device").splitlines():
            device, _, state = line.rpartition(":")
            if device == interface and state not in ("unmanaged", "unavailable"):
                return "NetworkManager"
    setup = output("networkctl", "--no-legend", "--no-pager", "list", interface).split()[-1:]
    if active("systemd-networkd") and setup not in ([], ["unmanaged"]):
        return "networkd"
    folder = Path("/etc/network")
    files = [folder / "interfaces", *folder.glob("interfaces.d/*")]
    text = "\n".join(file.read_text() for file in files if file.is_file())
    return "ifupdown" if re.search(rf"(?m)^\s*iface\s+{re.escape(interface)}\s", text) else "nobody"


def somebody_has(address, interface):
    """Whether a machine on the cable answers for this address; None where that cannot be asked."""
    if not shutil.which("arping"):
        return None
    asked = subprocess.run(
        ["arping", "-q", "-c", "3", "-w", "3", "-f", "-I", interface, address], capture_output=True, check=False
    )
    return asked.returncode == 0


def answers_names(server):
    """Whether a name server says anything at all, asked for the servers of the root."""
    kind = socket.AF_INET6 if ":" in server else socket.AF_INET
    number = secrets.token_bytes(2)
    question = number + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + b"\x00\x00\x02\x00\x01"
    with socket.socket(kind, socket.SOCK_DGRAM) as asking:
        asking.settimeout(1.5)
        for _ in range(3):
            try:
                asking.sendto(question, (server, 53))
                if asking.recv(4096)[:2] == number:
                    return True
            except OSError:
                continue
    return False


def chosen(wanted, known, gateways):
    """The interface that is meant, or None."""
    name = wanted["interface"].lower()
    if not name:
        holder = (link for link, facts in known.items() if wanted["address"].partition("/")[0] in bare(facts))
        return next(holder, next((link for link in gateways if link in known), None))
    by_mac = next((link for link, facts in known.items() if facts["mac"] == name), None)
    return by_mac or (wanted["interface"] if wanted["interface"] in known else None)


def bare(facts):
    return [address.partition("/")[0] for address in facts["addresses"]]


def listed(known):
    return ", ".join(f"{name} ({' '.join([facts['mac'], *facts['addresses']])})" for name, facts in known.items())


def problems_of(wanted, interface, facts, gateways):
    """What would cut the machine off or disturb another one."""
    address = ipaddress.IPv4Interface(wanted["address"])
    gateway, holds = wanted["gateway"], str(address.ip) in bare(facts)
    if not facts["carrier"]:
        yield f"{interface} has no link: plug in its cable, or set lan_interface to another one"
        return
    for now in map(ipaddress.IPv4Interface, facts["addresses"]):
        if address.ip in now.network and now.network.prefixlen != address.network.prefixlen:
            yield (
                f"cluster_prefix is {address.network.prefixlen}, but the network on {interface} is {now.network}: "
                f"write {now.network.prefixlen}"
            )
    if wanted["mtu"] and facts["max_mtu"] and wanted["mtu"] > facts["max_mtu"]:
        yield f"cluster_mtu is {wanted['mtu']}, but {interface} can do {facts['max_mtu']} at most: write that or less"
    if not holds and somebody_has(str(address.ip), interface):
        yield f"another machine on {interface} holds {address.ip} already: give this node an address that is free"
    if gateway:
        if somebody_has(gateway, interface) is False:
            here = next((f"; the way out is {each} now" for each in gateways.values()), "")
            yield f"no machine on {interface} answers for cluster_gateway {gateway}{here}: correct it"
    elif gateways.get(interface):
        yield (
            f"{interface} is its way out ({gateways[interface]}), but cluster_gateway is empty: "
            "write the router's address there"
        )
    for server in wanted["nameservers"]:
        if not answers_names(server):
            yield f"name server {server} (cluster_nameservers) does not answer: correct it or take it out"


def main():
    wanted, known = json.loads(sys.argv[1]), links()
    routes = json.loads(output("ip", "-json", "-4", "route", "show", "default") or "[]")
    gateways = {route["dev"]: route.get("gateway", "no gateway") for route in routes}
    interface = chosen(wanted, known, gateways)
    found = {"links": known, "interface": interface, "owner": "", "holds": False, "problems": []}
    if interface is None:
        wrong = (
            f"there is no interface {wanted['interface']} (lan_interface)"
            if wanted["interface"]
            else (f"no interface holds {wanted['address']}")
        )
        found["problems"] = [f"{wrong}; it has {listed(known)}: set lan_interface for this node to one of these"]
    else:
        facts = known[interface]
        found["owner"] = owner_of(interface)
        found["holds"] = wanted["address"].partition("/")[0] in bare(facts)
        if os.geteuid() == 0:
            found["problems"] = list(problems_of(wanted, interface, facts, gateways))
    print(json.dumps(found))


main()
