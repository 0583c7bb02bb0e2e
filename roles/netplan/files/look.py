"""Look at this machine's network before anything changes; prints one JSON object. Only Python's own library.

python3 look.py WANTED, a JSON object with the keys

    address (192.168.1.100/24), gateway, nameservers, mtu, old (the address that it is found at until then, or empty),
    after (whether this is the look after the change),
    interface (name, MAC, or empty: the one that holds the address, or else the way out)

The answer: links (name -> mac, addresses), interface, owner (networkd, NetworkManager, ifupdown or nobody), id (what
netplan calls it, if it knows it), mtu (its owner's own, 0: the usual 1500), holds (whether the address is on it now)
and problems, one line each. A question that needs a tool that is not installed yet is left out.
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

NETPLAN, LINKS = Path("/etc/netplan"), Path("/sys/class/net")
RESOLV, RUN = Path("/etc/resolv.conf"), Path("/run")
# What minos-netplan has written down of the interface: in a trial that nobody has kept, and before the first change.
NOTES = (RUN / "minos-netplan/trial.json", Path("/var/lib/minos-netplan/before.json"))
OURS, BY_MAC = "60-minos.yaml", "minos"
LEAVE = "set static_ip: false for this node and keep its address fixed yourself"


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
        given = [each for each in link["addr_info"] if each["scope"] == "global"]
        addresses = [f"{each['local']}/{each['prefixlen']}" for each in given if each["family"] == "inet"]
        facts = {"mac": link["address"].lower(), "addresses": addresses, "max_mtu": link.get("max_mtu", 0)}
        facts |= {"mtu": link.get("mtu", 1500), "up": "UP" in link["flags"]}
        facts["static"] = [each["local"] for each in given if not each.get("dynamic")]
        facts["kind"] = (
            "part of " + link["master"] if "master" in link else link.get("linkinfo", {}).get("info_kind", "")
        )
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
    files = [folder / "interfaces", *folder.glob("interfaces.d/[!.]*")]
    text = "\n".join(file.read_text() for file in files if file.is_file())
    return "ifupdown" if re.search(rf"(?m)^\s*iface\s+{re.escape(interface)}\s", text) else "nobody"


def definitions(interface, mac):
    """(file, netplan's name, settings) of what configures the interface, and the other interfaces that each matches."""
    try:
        import yaml  # comes with netplan; on a virgin node there may be neither
    except ImportError:
        return
    for file in sorted(NETPLAN.glob("*.yaml")):
        content = mapping(yaml.load(file.read_text(), Loader=yaml.BaseLoader))
        network = mapping(content.get("network"))
        for name, settings in mapping(network.get("ethernets")).items():
            match = mapping(settings).get("match")
            if name.startswith("NM-") and "networkmanager" in mapping(settings):
                found = []  # a profile that NetworkManager keeps there, as Ubuntu's does: put aside as one
            elif not isinstance(match, dict):  # an empty map is another thing: it means every interface
                found = [name] if name == interface else []
            elif match.get("macaddress"):
                found = [interface] if match["macaddress"].lower() == mac else []
            else:
                found = [link.name for link in LINKS.iterdir() if matches(link.name, match, interface)]
            if interface in found:
                yield file, name, [link for link in found if link != interface]
        for kind in ("bonds", "bridges", "vlans", "vrfs"):
            for name, settings in mapping(network.get(kind)).items():
                if interface in [*(mapping(settings).get("interfaces") or []), mapping(settings).get("link")]:
                    yield file, name, [name]


def id_of(interface, mac):
    """What netplan calls it in somebody's file. Where we have emptied that since, ours has the name, or each run would
    find another one; but not where it is the one that we give to a MAC (see the template).
    """
    named = [(file.name == OURS, name) for file, name, _ in definitions(interface, mac)]
    theirs, ours = ([name for of_us, name in named if of_us is which] for which in (False, True))
    return next((name for name in [*theirs, *ours] if name != BY_MAC), "")


def own_mtu(interface, facts):
    """What its owner has set, which netplan would put back to 1500 at the next boot; 0 where it is that. Not what we
    have set since.
    """
    for note in (json.loads(file.read_text()) for file in NOTES if file.exists()):
        if note.get("interface") == interface:
            facts = facts | {"mtu": note.get("mtu", facts["mtu"])}
            break
    return 0 if facts["mtu"] == 1500 else facts["mtu"]


def mapping(value):
    return value if isinstance(value, dict) else {}


def matches(link, match, interface):
    """Whether a definition is about this link; of the others hardware alone, as those of containers come and go."""
    device = LINKS / link / "device"
    driver = (device / "driver").resolve().name
    there = link == interface or device.exists()
    return there and Path(link).match(match.get("name", "*")) and Path(driver).match(match.get("driver", "*"))


def told_by_ifupdown():
    """The file in /run that resolv.conf leads to, where a program writes it by what ifupdown tells it at each boot."""
    leads_to = RESOLV.resolve()
    made = RESOLV.is_symlink() and leads_to.is_relative_to(RUN) and not active("systemd-resolved")
    return leads_to if made else None


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


def problems_of(wanted, interface, facts, gateways, owner):
    """What would cut the machine off or disturb another one."""
    address = ipaddress.IPv4Interface(wanted["address"])
    gateway, holds = wanted["gateway"], str(address.ip) in bare(facts)
    if any((LINKS / interface / part).exists() for part in ("wireless", "phy80211")):
        yield f"{interface} is WiFi, which is not for Minos to set up: {LEAVE}"
        return
    if facts["kind"] not in ("", "veth", "tun"):
        yield f"{interface} is {facts['kind']}, which is not for Minos to set up: {LEAVE}"
        return
    for file, name, others in definitions(interface, facts["mac"]):
        if others:
            together = f"{interface} and {', '.join(others)} together"
            yield f"{file} ({name}) is about {together}: give each its own there, or {LEAVE}"
    others = [each for each in facts["static"] if each not in (str(address.ip), wanted["old"])]
    if others:
        yield f"{interface} has {', '.join(others)} besides, which would be lost: {LEAVE}"
    if owner == "nobody" and facts["static"]:
        yield f"nothing known configures {interface}, though it has {facts['static'][0]}: {LEAVE}"
    if gateway and not wanted["nameservers"] and len(facts["static"]) < len(facts["addresses"]):
        yield f"the name servers of {interface} came by DHCP, and cluster_nameservers is empty: write them there"
    if wanted["nameservers"] and owner in ("ifupdown", "nobody") and (other := told_by_ifupdown()):
        yield f"nobody would write cluster_nameservers to {other} (resolvconf): install systemd-resolved, or {LEAVE}"
    if wanted["after"] and gateway and gateways.get(interface) != gateway:
        yield f"its way out is {gateways.get(interface, 'gone')} and not cluster_gateway {gateway}"
    if not facts["up"]:
        switch = f"sudo ip link set dev {interface} up"
        yield f"{interface} is switched off there: {switch}, or set lan_interface to another one"
        return
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
    found = {"links": known, "interface": interface, "owner": "", "id": "", "mtu": 0, "holds": False, "problems": []}
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
        found["id"] = id_of(interface, facts["mac"])
        found["holds"] = wanted["address"].partition("/")[0] in bare(facts)
        if os.geteuid() == 0:
            found["mtu"] = own_mtu(interface, facts)
            found["problems"] = list(problems_of(wanted, interface, facts, gateways, found["owner"]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
