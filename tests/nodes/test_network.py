"""netplan and cluster_hosts: the address, and the names of all members."""

import json

import pytest


def test_netplan_the_address_is_on_one_interface(host, told):
    links = json.loads(host.check_output("ip -json -4 address show"))
    found = [f"{a['local']}/{a['prefixlen']}" for link in links for a in link["addr_info"]]
    assert found.count(f"{told.address}/{told.prefix}") == 1


def test_netplan_the_address_is_static(host, told):
    """Where systemd-networkd has the interface; NetworkManager's and ifupdown's are left to the owner."""
    links = json.loads(host.check_output("ip -json -4 address show"))
    nic = next(link["ifname"] for link in links if told.address in [a["local"] for a in link["addr_info"]])
    listed = host.run("networkctl --no-legend --no-pager list %s", nic).stdout.split()
    if not listed or listed[-1] == "unmanaged":
        pytest.skip(f"{nic} is not managed by systemd-networkd")
    file = host.file("/etc/netplan/60-minos.yaml")
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)
    assert host.check_output("netplan get ethernets.%s.addresses", nic) == f'- "{told.address}/{told.prefix}"'
    assert host.run("cmp /etc/netplan/60-minos.yaml /var/lib/minos-netplan/candidate.yaml").rc == 0
    assert f"10-netplan-{nic}.network" in host.check_output("networkctl --no-pager status %s", nic)


def test_netplan_no_guard_is_waiting_to_take_the_address_back(host):
    for unit in ("minos-netplan-restore", "minos-netplan-restore-again"):
        assert not host.service(f"{unit}.timer").is_running
    assert not host.file("/run/netplan/60-minos.yaml").exists


def test_cluster_hosts_every_name_resolves_to_the_cluster_address(host, told):
    for peer, address in told.members.items():
        answers = {line.split()[0] for line in host.check_output("getent ahostsv4 %s", peer).splitlines()}
        assert answers == {address}, peer


def test_cluster_hosts_the_host_name(host, name):
    assert host.check_output("hostname") == name
