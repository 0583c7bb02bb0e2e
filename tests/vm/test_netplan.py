"""Static addresses on the NIC that carries the SSH session, on machines as an installer leaves them (ifupdown).

Whatever is wrong, the node answers on a known address afterwards, and a message says what happened. The tests build on
each other: first everything is refused, then an address is tried and lost, then the node moves.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import ROOT, VM_PACKAGES, Lab, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1500)]  # emulated, on two cores that others use too

LAB = Lab("vmnetplan", patience=1400, variables={"ANSIBLE_TIMEOUT": "60"})
lab, inside = LAB.command, LAB.inside
NIC = "enp0s2"


def over(folder: Path, hosts: dict[str, dict]) -> Path:
    """An inventory with variables of these hosts."""
    file = folder / "over.yml"
    file.write_text(json.dumps({"all": {"hosts": hosts}}))
    return file


def site(laid_over: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The part of site.yml that is about addresses, over the lab's inventory and one laid over it."""
    inventory = ["inventory/lab", *([laid_over] if laid_over else [])]
    return LAB.playbook("site.yml", "--tags", "netplan", inventory=inventory, check=False)


def address_of(node: str) -> list[str]:
    return re.findall(r"inet (\S+)", inside(node, f"ip -4 address show {NIC}"))


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, dict]]:
    lab("down")
    lab("up", "--kind", "vm", "-n", "2", "--packages", VM_PACKAGES)
    look = base64.b64encode((ROOT / "roles/netplan/files/look.py").read_bytes()).decode()
    inside("node2", f"echo {look} | base64 -d > /tmp/look.py")
    yield LAB.nodes()
    lab("down")


@pytest.fixture(scope="module")
def right(nodes) -> dict:
    """What look.py is asked when everything is right."""
    network = nodes["node2"]["address"].rpartition(".")[0]
    wanted = {"address": f"{nodes['node2']['address']}/24", "interface": NIC, "gateway": f"{network}.1", "mtu": 0}
    wanted |= {"old": "", "after": False}
    return wanted | {"nameservers": [f"{network}.1"], "network": network}


def look(wanted: dict) -> dict:
    return json.loads(inside("node2", f"python3 /tmp/look.py '{json.dumps(wanted)}'"))


def test_what_is_right_is_not_refused(right):
    found = look(right)
    assert (found["problems"], found["interface"], found["owner"], found["holds"]) == ([], NIC, "ifupdown", True)
    by_mac = look(right | {"interface": found["links"][NIC]["mac"].upper()})
    assert (by_mac["problems"], by_mac["interface"]) == ([], NIC)


MISTAKES = {
    "a gateway that is nobody": ({"gateway": "{}.77"}, "no machine on enp0s2 answers for cluster_gateway {}.77"),
    "no gateway on the way out": ({"gateway": ""}, "enp0s2 is its way out ({}.1), but cluster_gateway is empty"),
    "a longer prefix": (
        {"address": "{}.12/28"},
        "cluster_prefix is 28, but the network on enp0s2 is {}.0/24: write 24",
    ),
    "a shorter prefix": (
        {"address": "{}.12/16"},
        "cluster_prefix is 16, but the network on enp0s2 is {}.0/24: write 24",
    ),
    "a name server that is nobody": ({"nameservers": ["{}.1", "{}.78"]}, "name server {}.78 (cluster_nameservers)"),
    "a machine that is no name server": ({"nameservers": ["{}.11"]}, "name server {}.11 (cluster_nameservers)"),
    "somebody else's address": (
        {"address": "{}.11/24", "old": "{}.12"},
        "another machine on enp0s2 holds {}.11 already",
    ),
    "an interface that is not there": ({"interface": "enp9s0"}, "there is no interface enp9s0 (lan_interface); it has"),
    "a MAC that is not there": ({"interface": "52:54:00:00:00:99"}, "there is no interface 52:54:00:00:00:99"),
    "an address that would be lost": (
        {"address": "{}.99/24"},
        "enp0s2 has {}.12 besides, which would be lost",
    ),
    "packets that are too large": ({"mtu": 70000}, "cluster_mtu is 70000, but enp0s2 can do 65535 at most"),
}


@pytest.mark.parametrize(("change", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_refused_before_anything_changes(change, expected, right):
    network = right["network"]
    change = json.loads(json.dumps(change).replace("{}", network))
    (problem,) = look(right | change)["problems"]
    assert problem.startswith(expected.replace("{}", network))


def test_a_cable_that_is_out_is_said(right):
    lab("cable", "node2", "down")
    try:
        (problem,) = look(right)["problems"]
    finally:
        lab("cable", "node2", "up")
    assert problem.startswith("enp0s2 has no link: plug in its cable")


def test_the_playbook_refuses_it_too_and_touches_nothing(nodes, tmp_path):
    done = site(over(tmp_path, {"node2": {"cluster_nameservers": [nodes["node1"]["address"]]}}))
    assert done.returncode != 0
    assert f"node2: name server {nodes['node1']['address']} (cluster_nameservers) does not answer" in done.stdout
    for node in nodes:
        assert inside(node, "find /etc/netplan /usr/local/sbin/minos-netplan -type f 2>/dev/null; true") == ""


def test_the_installers_settings_are_set_aside_and_the_address_stays(nodes):
    done = site()
    assert done.returncode == 0, done.stdout[-3000:]
    for name, node in nodes.items():
        assert address_of(name) == [f"{node['address']}/24"]
        assert inside(name, "systemctl is-enabled systemd-networkd") == "enabled"
        assert inside(name, f"grep -c '^iface {NIC}' /etc/network/interfaces; true") == "0"
        kept = "/var/lib/minos-netplan/set-aside/etc/network/interfaces"
        assert inside(name, f"grep -c '^iface {NIC}' {kept}") == "1"
        assert inside(name, "systemctl is-active minos-netplan-restore.timer; true") == "inactive"


def test_large_packets_that_the_lan_does_not_carry_are_said(nodes, tmp_path):
    """Nobody is cut off by them: SSH agrees with each end on what that end can do, and this end can do 1500."""
    done = site(over(tmp_path, {name: {"cluster_mtu": 9000} for name in nodes}))
    assert done.returncode != 0
    for name, other in (("node1", "node2"), ("node2", "node1")):
        assert inside(name, f"cat /sys/class/net/{NIC}/mtu") == "9000", "otherwise nothing was tried"
        assert f"{name}: packets of 9000 bytes do not reach {nodes[other]['address']}, small ones do" in done.stdout
    again = site()
    assert again.returncode == 0, again.stdout[-3000:]
    assert [inside(name, f"cat /sys/class/net/{NIC}/mtu") for name in nodes] == ["1500", "1500"]


# What no look can know beforehand. Nothing leads from here to .200, as where a switch or a VLAN does not carry the new
# network; node1 is no router, so what goes through it to this end is lost.
LOST = {
    "an address that cannot be reached": {"ansible_host": "{}.200", "cluster_ip": "{}.200", "first_contact": "{}.12"},
    "a route that leads the answers astray": {"cluster_routes": [{"to": "{}.1/32", "via": "{}.11"}]},
}


@pytest.mark.parametrize("mistake", LOST.values(), ids=LOST)
def test_what_cuts_a_node_off_is_taken_back(mistake, nodes, right, tmp_path):
    address = nodes["node2"]["address"]
    assert (address, right["gateway"]) == (f"{right['network']}.12", f"{right['network']}.1")
    settings = json.loads(json.dumps(mistake).replace("{}", right["network"]))
    before = inside("node2", "cat /etc/netplan/60-minos.yaml")
    done = site(over(tmp_path, {"node2": settings}))
    assert done.returncode != 0
    assert f"node2: {settings.get('cluster_ip', address)}/24 on {NIC} did not work" in done.stdout
    assert f"It has gone back to its old settings and answers at {address}." in done.stdout
    assert address_of("node2") == [f"{address}/24"]
    assert inside("node2", "ls /run/netplan; cat /etc/netplan/60-minos.yaml") == before


def test_a_node_moves_and_stays_there_over_a_sudden_reboot(nodes, right, tmp_path):
    spare = nodes["node2"]["spare_address"]
    settings = {"ansible_host": spare, "cluster_ip": spare, "first_contact": nodes["node2"]["address"]}
    moved = over(tmp_path, {"node2": settings})
    done = site(moved)
    assert done.returncode == 0, done.stdout[-3000:]
    assert address_of("node2") == [f"{spare}/24"]
    again = site(moved)
    assert re.search(r"node2 .*changed=0 ", again.stdout), again.stdout[-3000:]
    before = inside("node2", "sync; cat /proc/sys/kernel/random/boot_id")
    # The lab's own `start` would wait for SSH at the address that the node has left.
    inside("node2", "(sleep 1; echo b > /proc/sysrq-trigger) >/dev/null 2>&1 &")
    wait_until(
        lambda: inside("node2", "cat /proc/sys/kernel/random/boot_id", check=False) not in ("", before), 400, pause=3
    )
    inside("node2", "systemctl start network-online.target")
    assert address_of("node2") == [f"{spare}/24"]
    assert f"default via {right['gateway']}" in inside("node2", "ip route")


NETWORK = "cat /etc/network/interfaces; ls /etc/netplan; systemctl is-enabled systemd-networkd; ip -4 -brief address"


def test_reset_goes_back_to_ours_where_nobody_comes_in_on_the_old_settings(nodes):
    """The node by itself, when nobody says that it is reached."""
    ours = inside("node2", NETWORK, check=False)
    inside("node2", "minos-netplan undo --seconds 40")
    assert address_of("node2") == [f"{nodes['node2']['address']}/24"], "the address that the installer gave"
    wait_until(lambda: inside("node2", NETWORK, check=False) == ours, 300, pause=3)
    assert address_of("node2") == [f"{nodes['node2']['spare_address']}/24"]


def test_reset_gives_the_installers_settings_back(nodes, tmp_path):
    spare, old = nodes["node2"]["spare_address"], nodes["node2"]["address"]
    settings = {"ansible_host": spare, "cluster_ip": spare, "first_contact": old}
    inventory = ["inventory/lab", over(tmp_path, {"node2": settings})]
    done = LAB.playbook("playbooks/reset.yml", "-l", "node2", "-e", "sure=true", inventory=inventory, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert address_of("node2") == [f"{old}/24"]
    assert inside("node2", "systemctl is-enabled systemd-networkd", check=False) == "disabled"
    assert inside("node2", f"grep -c '^iface {NIC}' /etc/network/interfaces") == "1"
    left = "/var/lib/minos* /usr/local/sbin/minos* /etc/netplan/*"
    assert inside("node2", f"ls -d {left} 2>/dev/null; true") == ""
