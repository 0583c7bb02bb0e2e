"""What a node's answer shows: each thing that is wrong gives one finding with its fix; a sound node gives none.

The answers are written here as the probe prints them: machines with another system, WiFi or a wrong clock cannot exist
here. The probe itself runs for real, on this machine and in the lab.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from rendering import shared

sys.path.insert(0, str(ROOT / "roles/preflight_nodes"))

from node_rules import findings
from node_rules.answer import SCRIPT, Answer, Asked
from node_rules.compare import clocks, nobodies, offset, twins
from node_rules.login import NO_ROOT, UNREACHABLE, explain, reached
from node_rules.running import running

ASKED = Asked(
    name="node1",
    members={"node1": "10.0.0.1", "node2": "10.0.0.2", "node3": "10.0.0.3"},
    address="10.0.0.1",
    wanted="10.0.0.1",
    interface="",
    gateway="10.0.0.254",
    store="10.0.0.1:29500",
    python="/usr/bin/python3",
    systems={"debian": ["12", "13"], "ubuntu": ["22.04", "24.04"]},
    space=[
        {"path": "/opt/minos/env", "use": "the environment", "gigabytes": 4, "unless": "/opt/minos/env/bin/python"},
        {"path": "/srv/minos", "use": "jobs", "gigabytes": 2.0},
    ],
    mends="",
    memory=2.0,
    ssh=True,
    accounts=["you"],
)


def link(name, *addresses):
    return {
        "ifname": name,
        "address": f"52:54:00:00:00:0{name[-1:]}",
        "addr_info": [{"family": "inet", "local": address} for address in addresses],
    }


# As `ip` says it of one that is up and has no IPv4 address yet.
LAN1 = {"ifname": "lan1", "addr_info": [{"family": "inet6", "local": "fe80::1"}]}


def way(device="lan0", **more):
    return [{"dst": "x", "dev": device, **more}]


GOOD = {
    "time": "1000.5",
    "user": "0",
    "system": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n# a remark',
    "machine": "x86_64\nsystemd",
    "python": "3.11",
    "sudo": "/usr/bin/sudo",
    "memory": "16000000 kB",
    "identity": "machine 0123\nboot 4567\nkey AAAA",
    "links": [link("lo", "127.0.0.1"), link("lan0", "10.0.0.1"), LAN1],
    "wireless": "",
    "routes": {"10.0.0.2": way(), "10.0.0.3": way()},
    "space": "/opt/minos/env /dev/sda 99 9 90000000 1% /\n/srv/minos nas:/x 99 9 90000000 1% /srv/minos",
    "accounts": "you",
    "made": "",
    "firewalls": "",
    "services": "",
    "jobs": "demo inactive 10.0.0.9:29500 10.0.0.9",
    "end": "",
}


def answer(**changes):
    """Return an answer as the script prints it."""
    sections = GOOD | changes
    routes = sections["routes"]
    sections["routes"] = "\n".join(f"{peer} {json.dumps(found) if found else ''}" for peer, found in routes.items())
    sections["links"] = json.dumps(sections["links"])
    return Answer("".join(f"\n@{name}\n{body}\n" for name, body in sections.items()))


def test_a_sound_node():
    assert list(findings(answer(), ASKED)) == []
    assert list(findings(answer(), dataclasses.replace(ASKED, interface="lan0"))) == []


LONE = [link("lan0", "192.168.7.7")]
FULL = "/opt/minos/env /dev/sda 99 9 3000000 1% /\n/srv/minos /dev/sda 99 9 3000000 1% /"
# What is different, whether it ends the run, what the finding names, and the fix in it.
WRONG = {
    "another system": (
        {"system": 'ID=fedora\nVERSION_ID=43\nPRETTY_NAME="Fedora 43"'},
        True,
        "its system is Fedora 43",
        "'fedora: [\"43\"]' to preflight_nodes_systems",
    ),
    "another release": ({"system": 'ID=debian\nVERSION_ID="11"'}, True, "made for Debian 12 or 13", "install one"),
    "another processor": ({"machine": "aarch64\nsystemd"}, True, "processor is aarch64", "take it out"),
    "no systemd": ({"machine": "x86_64\nsh"}, True, "process 1 is sh", "boot it with systemd"),
    "no Python": ({"python": ""}, True, "no Python at /usr/bin/python3", "apt install python3"),
    "an old Python": ({"python": "3.7"}, True, "Python 3.7", "ansible_python_interpreter"),
    "no sudo": ({"sudo": ""}, True, "there is no sudo", "apt install sudo"),
    "no sshd": ({"identity": "machine 0123\nboot 4567\nkey "}, True, "ssh_host_ed25519_key.pub", "openssh-server"),
    "little memory": ({"memory": "990000 kB"}, False, "1.0 GB of memory", "small models"),
    "an address of nobody": (
        {"links": LONE},
        True,
        "no interface there holds 10.0.0.1, only lan0 (192.168.7.7)",
        "lan_",
    ),
    "WiFi": ({"wireless": "lan0\nlan0"}, False, "lan0 is WiFi", "use a cable"),
    "the wrong card": (
        {"routes": {"10.0.0.2": way("wlan0"), "10.0.0.3": way()}},
        True,
        "traffic to node2 (10.0.0.2) leaves by wlan0, not by lan0",
        "ip route get 10.0.0.2",
    ),
    "a VPN": (
        {"routes": {"10.0.0.2": way("tun0", gateway="10.8.0.1")}},
        True,
        "leaves by tun0 through 10.8.0.1",
        "take away that route",
    ),
    "another address of the same card": (
        {"routes": {"10.0.0.2": way(prefsrc="10.0.0.57"), "10.0.0.3": way(prefsrc="10.0.0.1")}},
        True,
        "traffic to node2 (10.0.0.2) leaves with the address 10.0.0.57, and the others let 10.0.0.1 in",
        "take 10.0.0.57 off lan0",
    ),
    "a firewall that apt would take away": (
        {"firewalls": "netfilter-persistent"},
        True,
        "its firewall is iptables-persistent",
        "sudo apt purge netfilter-persistent",
    ),
    "two firewalls": ({"firewalls": "nftables"}, False, "nftables.service is enabled", "systemctl disable nftables"),
    "through the router": (
        {"routes": {"10.0.0.2": way(gateway="10.0.0.254")}},
        True,
        "goes through the router 10.0.0.254",
        "correct the prefix of lan0",
    ),
    "no way": ({"routes": {"10.0.0.2": None}}, True, "no way to node2 (10.0.0.2)", "correct the address"),
    "a full disk": ({"space": FULL}, True, "/ has 3.1 GB free and needs 6 (the environment in /opt", "free some"),
    "a share that hangs": (
        {"space": "/opt/minos/env /dev/sda 99 9 90000000 1% /\n/srv/minos"},
        True,
        "/srv/minos does not answer",
        "findmnt --target /srv/minos",
    ),
    "a job at another store": (
        {"jobs": "demo active 10.0.0.9:29500 10.0.0.1"},
        True,
        "job demo is running with the store at 10.0.0.9:29500, and the inventory says 10.0.0.1:29500",
        "stop.yml -e job=demo",
    ),
    "a job at another address": (
        {"jobs": "demo active 10.0.0.1:29500 10.0.0.8"},
        True,
        "job demo is running at 10.0.0.8",
        "write the old address",
    ),
}


def test_a_job_is_held_against_the_address_that_the_node_will_have():
    """On its first contact a machine is asked under its old address, at which the job runs."""
    hosts = {"node1": "10.0.0.1", "node2": "10.0.0.50"}
    told = {
        option: shared(f"preflight_nodes_{option}", "node2", hosts, {"head": ["node1"]}, netplan_old_host="10.0.0.2")
        for option in ("address", "wanted")
    }
    assert told == {"address": "10.0.0.2", "wanted": "10.0.0.50"}
    jobs = {"jobs": "demo active 10.0.0.1:29500 10.0.0.2", "links": [link("lan0", "10.0.0.2")]}
    (found,) = findings(answer(**jobs), dataclasses.replace(ASKED, members={}, **told))
    assert found.fatal and "job demo is running at 10.0.0.2, and the inventory says 10.0.0.50" in found.text


@pytest.mark.parametrize(("changes", "fatal", "named", "fix"), WRONG.values(), ids=WRONG)
def test_one_finding_for_one_thing(changes, fatal, named, fix):
    found = list(findings(answer(**changes), ASKED))
    assert len(found) == 1, found
    assert found[0].fatal is fatal
    assert named in found[0].text and fix in found[0].text and "\n" not in found[0].text


INTERFACES = {
    "one that is not there": ("eth7", GOOD["links"], "no interface eth7, only lan0 (10.0.0.1), lan1 (no address)"),
    "not the one with the address": ("lan1", GOOD["links"], "10.0.0.1 is on lan0, and lan_interface says lan1"),
}


@pytest.mark.parametrize(("interface", "links", "named"), INTERFACES.values(), ids=INTERFACES)
def test_the_interface_that_the_inventory_names(interface, links, named):
    found = list(findings(answer(links=links), dataclasses.replace(ASKED, interface=interface)))
    assert [each.fatal for each in found] == [True] and named in found[0].text


def test_an_address_that_the_node_shall_get_is_no_mistake():
    for interface in ("lan0", "52:54:00:00:00:00"):
        assert list(findings(answer(links=LONE), dataclasses.replace(ASKED, interface=interface))) == []


@pytest.mark.parametrize("interface", ["lan1", "52:54:00:00:00:01", ""])
@pytest.mark.parametrize("met", ["10.0.0.57", "rig.local", "fe80::2"])
def test_where_a_machine_is_met_first_need_not_be_where_its_address_shall_be(met, interface):
    links = [link("lan0", "10.0.0.57"), link("lan1")]
    asked = dataclasses.replace(ASKED, members={}, address=met, wanted="10.0.0.1", interface=interface)
    assert list(findings(answer(links=links, routes={}), asked)) == []


def test_a_mac_that_no_interface_has():
    (found,) = findings(answer(), dataclasses.replace(ASKED, interface="52:54:00:00:00:77"))
    assert found.fatal and "it has no interface 52:54:00:00:00:77, only lan0 (10.0.0.1)" in found.text


def test_what_only_a_head_has_is_known():
    assert answer(services="rendezvous\ntensorboard").lines("services") == ["rendezvous", "tensorboard"]
    services = {"__preflight_nodes_answer": {"services": ["rendezvous"]}}
    hosts = {"node1": "10.0.0.1", "node2": "10.0.0.2"}
    told = {host: shared("torchrun_head_services", host, hosts, {"head": ["node1"]}, **services) for host in hosts}
    assert told == {"node1": [], "node2": ["rendezvous"]}


def test_a_share_that_this_run_mounts_anew_may_be_silent():
    """Its server has just been installed again, or another machine shall export it."""
    silent = {"space": "/opt/minos/env /dev/sda 99 9 90000000 1% /\n/srv/minos"}
    (found,) = findings(answer(**silent), dataclasses.replace(ASKED, mends="/srv/minos"))
    assert not found.fatal and "/srv/minos does not answer" in found.text


def test_what_is_installed_needs_no_room():
    assert list(findings(answer(space=FULL, made="/opt/minos/env/bin/python"), ASKED)) == []


def test_without_a_gateway_a_router_between_members_is_a_warning():
    asked = dataclasses.replace(ASKED, gateway="")
    found = list(findings(answer(routes={"10.0.0.2": way(gateway="10.0.0.254")}), asked))
    assert [each.fatal for each in found] == [False]


def test_which_jobs_run_there():
    jobs = "demo active 10.0.0.1:29500 10.0.0.1\nold inactive x y\nnew activating x y\nlast deactivating\nbad failed"
    assert running(answer(jobs=jobs)) == ["demo", "new", "last"]
    assert running(answer(jobs="")) == []


def test_clocks():
    assert offset(10.0, 11.0, 12.0) == 0
    assert (offset(10.0, 7.0, 12.0), offset(10.0, 15.0, 12.0)) == (-3.0, 3.0)
    assert list(clocks({"a": 0.0, "b": 4.0}, 300, 5)) == []
    (name, found), *more = clocks({"a": 0.0, "b": -40.0, "c": 0.5}, 300, 5)
    assert (name, found.fatal, more) == ("b", False, []) and "40 s behind this machine's" in found.text
    (name, found), *more = clocks({"a": 0.0, "b": 7200.0}, 300, 5)
    assert (name, found.fatal, more) == ("b", True, []) and "120 min ahead of" in found.text
    (name, found), *more = clocks({"a": 7200.0, "b": 7201.0}, 300, 5)
    assert (name, found.fatal, more) == ("this machine", True, []), "all nodes agree: it is this clock that is wrong"
    assert "120 min behind all nodes'" in found.text


def test_an_account_that_no_node_has():
    """Who logs in by another name elsewhere has it where it is."""
    assert list(nobodies({"node1": {"you": True}, "node2": {"you": False}})) == []
    assert list(nobodies({"node1": {}, "node2": {}})) == []
    ((whom, finding),) = nobodies({"node1": {"yuo": False, "you": True}, "node2": {"yuo": False, "you": False}})
    assert whom == "python_env_shell_users holds yuo" and finding.fatal


def test_machines_that_are_one_and_the_same():
    def identity(machine, boot, key):
        return {"machine": machine, "boot": boot, "key": key}

    a, b = identity("m1", "b1", "k1"), identity("m2", "b2", "k2")
    assert list(twins({"a": a, "b": b, "c": {}, "d": {}})) == []
    for other, named in (
        (a, "is the same machine as a"),
        (identity("m1", "b3", "k1"), "has the machine id of a"),
        (identity("m3", "b3", "k1"), "has the SSH host key of a"),
    ):
        found = list(twins({"a": a, "b": b, "c": other}))
        assert [name for name, _ in found] == ["c"] and named in found[0][1].text and found[0][1].fatal


SSH = "Failed to connect to the host via ssh: "
SAID = {
    "off": (UNREACHABLE, f"{SSH}ssh: connect to host h port 22: No route to host", "switch it on"),
    "slow": (UNREACHABLE, f"{SSH}ssh: connect to host h port 22: Connection timed out", "then try: ssh you@h -p 2222"),
    "no sshd": (UNREACHABLE, f"{SSH}ssh: connect to host h port 22: Connection refused", "apt install openssh-server"),
    "no key": (UNREACHABLE, f"{SSH}you@h: Permission denied (publickey,password).", "ssh-copy-id you@h"),
    "unknown": (
        UNREACHABLE,
        f"{SSH}No ED25519 host key is known\r\nHost key verification failed.",
        "trust.yml shows its fingerprint",
    ),
    "reinstalled": (
        UNREACHABLE,
        f"{SSH}@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\r\nHost key verification failed.",
        "trust.yml names the line",
    ),
    "no such name": (UNREACHABLE, f"{SSH}ssh: Could not resolve hostname h: unknown", "correct ansible_host"),
    "closed": (UNREACHABLE, f"{SSH}Connection closed by UNKNOWN port 65535", "its sshd lets this machine in"),
    "something else": (UNREACHABLE, f"{SSH}\nBad owner on ~/.ssh/config", "(Bad owner on ~/.ssh/config)"),
    "sudo asks": (NO_ROOT, "sudo: a password is required", "add -K"),
    "sudo asks Ansible": (NO_ROOT, "Missing sudo password", "add -K"),
    "a wrong password": (NO_ROOT, "Incorrect sudo password", "type it again"),
    "no sudoer": (NO_ROOT, "you is not in the sudoers file.", "adduser you sudo"),
    "no sudo": (NO_ROOT, "/bin/sh: 1: sudo: not found", "apt install sudo"),
}


@pytest.mark.parametrize(("table", "said", "fix"), SAID.values(), ids=SAID)
def test_why_there_is_no_way_in(table, said, fix):
    told = explain(table, said, "you", "h", 2222)
    assert fix in told and "\n" not in told
    assert reached(said) is (table is NO_ROOT)


def test_the_probe_runs_here_and_its_answer_is_complete(tmp_path):
    """The real script in the real shell, on this machine: its commands exist and its answer can be read."""
    space = [{"path": str(tmp_path / "not/yet"), "use": "x", "gigabytes": 0, "unless": str(tmp_path)}]
    asked = dataclasses.replace(
        ASKED, members={"node1": "10.0.0.1", "here": "127.0.0.1"}, space=space, accounts=["root", "nobody-there"]
    )
    done = subprocess.run(["sh", "-c", asked.command()], capture_output=True, text=True, timeout=60)
    found = Answer(done.stdout)
    assert found.complete and done.stderr == ""
    assert set(found.sections) == set(GOOD)
    assert set(found.links) == {link.name for link in Path("/sys/class/net").iterdir() if link.is_dir()}
    assert "127.0.0.1" in found.links["lo"] and found.routes["127.0.0.1"]["dev"] == "lo"
    assert found.lines("space")[0].split()[0] == space[0]["path"] and len(found.lines("space")[0].split()) == 7
    assert found.lines("made") == [str(tmp_path)]
    assert found.lines("accounts") == ["root"]
    assert found.lines("machine")[0] == os.uname().machine


def test_the_probe_changes_nothing():
    """Every redirection in it goes nowhere, and no command in it writes."""
    text = SCRIPT.read_text()
    asks = text.replace("section sudo\ncommand -v sudo\n", "")  # only where it is
    assert ">" not in text.replace("2>/dev/null", "")
    assert not {"rm", "mv", "cp", "mkdir", "touch", "tee", "install", "apt", "sudo"} & set(asks.split())
