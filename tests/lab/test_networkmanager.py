"""Static addresses on a machine that NetworkManager looks after, as desktops do: Debian's own, in a container.

Ubuntu's, which keeps its profiles in /etc/netplan, is not here; what its files say is in tests/unit/test_netplan.py.
The tests build on each other: an address is tried and lost, the node moves, it is given back.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import ROOT, Lab, changed, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

LAB = Lab("nm")
NIC, NODE = "lan0", "node1"
inside = LAB.inside
# What a desktop has when its owner has typed an address into NetworkManager's window.
DESKTOP = """
set -e
apt-get -qq update && apt-get -qq install --yes --no-install-recommends network-manager netplan.io >/dev/null
nmcli connection add type ethernet ifname {nic} con-name office connection.autoconnect-priority 5 ipv4.method manual \
    ipv4.addresses {address}/24 ipv4.gateway {gateway} ipv4.dns {gateway}
systemctl --quiet disable --now systemd-networkd.socket systemd-networkd
rm /etc/systemd/network/*
nmcli connection up office
"""


@pytest.fixture(scope="module")
def node() -> Iterator[dict[str, str]]:
    LAB.command("down")
    LAB.command("up", "-n", "1")
    node = LAB.nodes()[NODE]
    node["gateway"] = f"{node['address'].rpartition('.')[0]}.1"
    inside(NODE, DESKTOP.format(nic=NIC, **node))
    yield node
    LAB.command("down")


def site(tmp_path: Path, address: str, old: str, **more: object) -> subprocess.CompletedProcess[str]:
    return run("site.yml", "--tags", "netplan", at=tmp_path, address=address, old=old, **more)


def run(*playbook: str, at: Path, address: str, old: str, **more: object) -> subprocess.CompletedProcess[str]:
    over = at / "over.yml"
    settings = {"ansible_host": address, "cluster_ip": address, "first_contact": old, **more}
    over.write_text(json.dumps({"all": {"hosts": {NODE: settings}}}))
    return LAB.playbook(*playbook, inventory=["inventory/lab", over], check=False)


def addresses() -> list[str]:
    return re.findall(r"inet (\S+)/24", inside(NODE, f"ip -4 address show {NIC}"))


def mtu() -> str:
    return inside(NODE, f"cat /sys/class/net/{NIC}/mtu")


def boot() -> str:
    """Another one after each boot; empty while it is off."""
    return inside(NODE, "systemctl show --property=UserspaceTimestampMonotonic --value", check=False)


def profile() -> str:
    """The one that is in force."""
    return inside(NODE, f"nmcli -g GENERAL.CONNECTION device show {NIC}")


def autoconnect(name: str) -> str:
    return inside(NODE, f"nmcli -g connection.autoconnect connection show {name}")


def test_packets_that_the_lan_does_not_carry_are_seen(node):
    """The LAN of the lab does 1500; tests/vm/test_netplan.py shows what the playbook says then."""
    script = base64.b64encode((ROOT / "roles/netplan/files/large.py").read_bytes()).decode()
    look = f"echo {script} | base64 -d | python3 - {{}} {node['gateway']} {node['address'].rpartition('.')[0]}.200"
    inside(NODE, f"ip link set {NIC} mtu 9000")
    try:
        assert inside(NODE, look.format(9000)) == node["gateway"], "the other one is not there at all"
        assert inside(NODE, look.format(1500)) == ""
    finally:
        inside(NODE, f"ip link set {NIC} mtu 1500")


def test_an_address_that_cannot_be_reached_is_taken_back(node, tmp_path):
    nowhere = f"{node['address'].rpartition('.')[0]}.200"
    done = site(tmp_path, nowhere, node["address"])
    assert done.returncode != 0
    assert f"It has gone back to its old settings and answers at {node['address']}." in done.stdout
    assert addresses() == [node["address"]] and profile() == "office"
    assert inside(NODE, "ls /etc/netplan /run/netplan") == "/etc/netplan:\n\n/run/netplan:"


def test_it_moves_and_stays_there_over_a_power_cut(node, tmp_path):
    spare = node["spare_address"]
    done = site(tmp_path, spare, node["address"])
    assert done.returncode == 0, done.stdout[-3000:]
    assert addresses() == [spare] and profile() == f"netplan-{NIC}"
    assert f"default via {node['gateway']}" in inside(NODE, "ip route")
    # A second change: the profile that is in force is ours by now, and the new one has its name.
    node["mtu"] = mtu()
    done = site(tmp_path, spare, node["address"], cluster_mtu=1400)
    assert done.returncode == 0 and mtu() == "1400", done.stdout[-3000:]
    assert autoconnect(f"netplan-{NIC}") == "yes", "Ubuntu's would not forget that over the power cut"
    assert changed(site(tmp_path, spare, node["address"], cluster_mtu=1400))[NODE] == 0
    # As a power cut; the lab's own `start` would wait for SSH at the address that the node has left.
    before = boot()
    inside(NODE, "sync; systemctl --no-block reboot -ff", check=False)
    wait_until(lambda: boot() not in ("", before) and addresses() == [spare], 90)
    assert profile() == f"netplan-{NIC}", "the old one has come back with the boot"


def test_reset_gives_its_own_settings_back(node, tmp_path):
    # As where ifupdown had it, and its owner has added something since.
    file, aside = "/etc/network/interfaces", "/var/lib/minos-netplan/set-aside/etc/network"
    copy = "/etc/network/.interfaces.before-minos-reset"
    inside(NODE, f"mkdir -p /etc/network {aside}; echo '# before' > {aside}/interfaces; echo '# since' > {file}")
    given = ["playbooks/reset.yml", "-l", NODE, "-e", "sure=true"]
    done = run(*given, at=tmp_path, address=node["spare_address"], old=node["address"])
    assert done.returncode == 0, done.stdout[-3000:]
    assert addresses() == [node["address"]] and profile() == "office" and mtu() == node["mtu"]
    assert autoconnect("office") == "yes"
    assert f"{NODE}: {file} was changed after Minos had: that version is kept as {copy}" in done.stdout
    assert inside(NODE, f"cat {file} {copy}") == "# before\n# since"
    left = "/var/lib/minos-netplan /usr/local/sbin/minos-netplan /etc/netplan/60-minos.yaml"
    assert inside(NODE, f"ls -d {left} 2>/dev/null; true") == ""
