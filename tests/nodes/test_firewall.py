"""firewall: members reach everything, everybody else SSH."""

import re
import shlex
import subprocess
import time
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PORT = 41234  # and the next ones, one for each process of pytest-xdist
LISTEN = """
import socket, sys
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
server.settimeout(30)
while True:
    server.accept()[0].close()
"""
CONNECT = """
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=4).close()
"""


@pytest.fixture
def listener(host, worker_id):
    """A port on the node that answers whoever the firewall lets through; it ends by itself after half a minute."""
    port, unit = PORT + int(worker_id.removeprefix("gw").replace("master", "0")), f"minos-check-listener-{worker_id}"
    host.check_output("systemd-run --quiet --collect --unit=%s python3 -c %s %s", unit, LISTEN, str(port))
    for _ in range(20):
        if host.socket(f"tcp://0.0.0.0:{port}").is_listening:
            break
        time.sleep(0.2)
    yield port
    host.run("systemctl stop %s", unit)


@pytest.fixture
def from_outside(told):
    """Connect from a machine that is no member: where the inventory names none, this one, unless it is a member."""
    here = subprocess.run(["ip", "-oneline", "-4", "address"], capture_output=True, text=True).stdout
    if not told.outsider and any(f" {address}/" in here for address in told.members.values()):
        pytest.skip("this machine is a member of the cluster; run the checks from another one as well")

    def connect(address, port):
        command = [*told.outsider, "python3", "-c", CONNECT, address, str(port)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30).returncode == 0

    return connect


@pytest.fixture
def ufw(host):
    if host.service("firewalld").is_running:
        pytest.skip("firewalld keeps the rules")


@pytest.fixture
def firewalld(host):
    if not host.service("firewalld").is_running:
        pytest.skip("ufw keeps the rules")


def test_firewall_is_active_and_denies_by_default(host, ufw):
    status = host.check_output("ufw status verbose")
    assert "Status: active" in status
    assert re.search(r"^Default: deny \(incoming\)", status, re.MULTILINE)
    for family in ("iptables", "ip6tables"):
        assert "-P INPUT DROP" in host.check_output(f"{family} --list-rules INPUT"), family


def test_firewall_firewalld_is_active_and_denies_by_default(host, told, firewalld):
    assert host.service("firewalld").is_enabled
    nic = host.check_output("ip -oneline -4 address show to %s", told.address).split()[1]
    zone = host.run("firewall-cmd --get-zone-of-interface=%s", nic).stdout.strip()
    zone = zone or host.check_output("firewall-cmd --get-default-zone")
    assert "target: ACCEPT" not in host.check_output("firewall-cmd --info-zone=%s", zone)
    assert not host.service("ufw").is_running or "inactive" in host.check_output("ufw status")


def test_firewall_firewalld_has_a_rule_for_ssh_and_for_every_member(host, told, firewalld):
    """In force, and the same after a restart."""
    for permanent in ("", "--permanent "):
        policy = host.check_output(f"firewall-cmd {permanent}--info-policy=minos")
        rules = r'rule priority="-10" family="ipv4" source address="(\S+)" accept'
        assert set(re.findall(rules, policy)) == set(told.members.values())
        assert re.search(rf"\b{told.ssh_port}/tcp\b" if "any" in told.ssh_from else f'port="{told.ssh_port}"', policy)


def test_firewall_has_a_rule_for_ssh_and_for_every_member(host, told, ufw):
    rules = host.check_output("ufw status")
    for source in told.ssh_from:
        pattern = rf"^{told.ssh_port}/tcp +ALLOW +{'Anywhere' if source == 'any' else re.escape(source)}"
        assert re.search(pattern, rules, re.MULTILINE), f"no rule for SSH from {source}"
    for peer, address in told.members.items():
        assert re.search(rf"^Anywhere +ALLOW +{re.escape(address)} ", rules, re.MULTILINE), f"no rule for {peer}"
    ours = set(re.findall(r"^Anywhere +ALLOW +(\S+) +# minos: ", rules, re.MULTILINE))
    assert ours == set(told.members.values()), "a rule of ours for an address that is no member's"


def test_firewall_foreign_rules_are_listed(host, name, ufw):
    """Rules of the owner's own are kept; whoever checks should see them."""
    rules = host.check_output("ufw status").partition("--\n")[2].splitlines()
    foreign = [rule for rule in rules if rule.strip() and "# minos: " not in rule]
    if foreign:
        warnings.warn(f"{name} has firewall rules that are not ours: {foreign}", stacklevel=1)


def test_firewall_members_reach_any_port(host, told, nodes, listener):
    for peer, other in nodes.items():
        done = other.run("python3 -c %s %s %s", CONNECT, told.address, str(listener))
        assert done.rc == 0, f"from {peer}: {done.stderr}"


def test_firewall_strangers_reach_ssh_only(told, listener, from_outside):
    assert from_outside(told.address, told.ssh_port), "cannot even connect to SSH: the check proves nothing"
    assert not from_outside(told.address, listener), f"port {listener} answers {shlex.join(told.outsider) or 'us'}"


def test_firewall_strangers_do_not_reach_the_store(told, from_outside):
    assert not from_outside(told.head_address, told.store_port)


def test_firewall_strangers_do_not_reach_the_share(told, name, nodes, from_outside):
    if name != told.nfs_server:
        pytest.skip("this node exports nothing")
    peer = next((other for each, other in nodes.items() if each != name), None)
    if peer:
        assert peer.run("python3 -c %s %s 2049", CONNECT, told.address).rc == 0, "no member reaches it: proves nothing"
    assert not from_outside(told.address, 2049)
