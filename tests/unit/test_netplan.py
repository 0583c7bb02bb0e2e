"""What the netplan role sets aside, and which interface it finds; on nodes it is tried in tests/vm."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from guard import FILES, MAC, NIC, below, loaded, moved
from paths import ROOT
from rendering import evaluated, happens, rendered

CLOUD_INIT = {
    "network": {
        "version": 2,
        "ethernets": {"enp1s0": {"dhcp4": True, "match": {"macaddress": MAC}, "set-name": "enp1s0"}},
    }
}
TWO = {"network": {"version": 2, "ethernets": {"enp1s0": {"dhcp4": True}, "enp2s0": {"dhcp4": True}}}}
BRIDGE = {"network": {"ethernets": {"enp1s0": {}}, "bridges": {"br0": {"interfaces": ["enp2s0"]}}}}
ALL = {"network": {"version": 2, "ethernets": {"all": {"match": {"name": "en*"}, "dhcp4": True}}}}
SIX = {"network": {"ethernets": {"enp1s0": {"dhcp4": True, "dhcp6": True, "addresses": ["10.0.0.7/24"]}}}}
PLAIN = {"network": {"version": 2, "ethernets": {"enp1s0": {"dhcp4": True}}}}
OTHER = {"network": {"ethernets": {"lan": {"match": {"macaddress": "52:54:00:00:00:09"}, "dhcp4": True}}}}
DESKTOP = {"network": {"version": 2, "renderer": "NetworkManager"}}
ADDED = {"network": DESKTOP["network"] | PLAIN["network"]}  # as Ubuntu's file looks once somebody has written into it


@pytest.fixture
def guard(tmp_path, monkeypatch):
    program = loaded("minos-netplan")
    below(program, tmp_path / "tree", monkeypatch)
    program.STATE.mkdir(parents=True)
    return program


@pytest.mark.parametrize(
    ("content", "rest"),
    [
        (
            CLOUD_INIT,  # which interface it means stays, and its IPv6
            {
                "network": {
                    "version": "2",
                    "ethernets": {"enp1s0": {"match": {"macaddress": MAC}, "set-name": "enp1s0"}},
                }
            },
        ),
        (TWO, {"network": {"version": "2", "ethernets": {"enp2s0": {"dhcp4": "true"}}}}),
        (ALL, {"network": {"version": "2", "ethernets": {"all": {"match": {"name": "en*"}}}}}),
        (SIX, {"network": {"ethernets": {"enp1s0": {"dhcp6": "true"}}}}),
        (PLAIN, None),
        (ADDED, {"network": {"version": "2", "renderer": "NetworkManager"}}),
    ],
    ids=["cloud-init", "two interfaces", "by a pattern", "with IPv6", "nothing else", "who renders all"],
)
def test_other_files_of_netplan_lose_the_interface_and_nothing_else(content, rest, guard, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "ETC", tmp_path)
    (tmp_path / "50-cloud-init.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / guard.OURS).write_text(yaml.safe_dump(TWO))
    found = guard.other_files("enp1s0", MAC)
    assert list(found) == ["50-cloud-init.yaml"]
    text = found["50-cloud-init.yaml"]
    assert (text and yaml.load(text, Loader=yaml.BaseLoader)) == rest
    (tmp_path / "50-cloud-init.yaml").write_text(text or "")
    assert guard.other_files("enp1s0", MAC) == {}, "a second time nothing is left to change"


def test_a_mac_without_quotes_is_no_number(guard, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "ETC", tmp_path)
    (tmp_path / "a.yaml").write_text(
        "network: {ethernets: {lan: {match: {macaddress: 52:54:00:12:34:56}, dhcp4: true}, x: {dhcp4: true}}}"
    )
    found = guard.other_files("eth0", "52:54:00:12:34:56")
    assert "dhcp4" not in yaml.safe_load(found["a.yaml"])["network"]["ethernets"]["lan"]
    assert "52:54:00:12:34:56" in found["a.yaml"]


@pytest.mark.parametrize("content", [OTHER, BRIDGE, DESKTOP, None, {"network": {"ethernets": None}}], ids=str)
def test_files_that_are_about_something_else_stay(content, guard, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "ETC", tmp_path)
    (tmp_path / "01-network-manager-all.yaml").write_text(yaml.safe_dump(content))
    assert guard.other_files("enp1s0", MAC) == {}


INTERFACES = """\
# The loopback network interface
source /etc/network/interfaces.d/*
auto lo enp1s0
iface lo inet loopback

allow-hotplug enp1s0
iface enp1s0 inet static
    address 192.168.1.7/24
    # our router
    gateway 192.168.1.1
iface enp1s0 inet6 auto
auto enp2s0
iface enp2s0 inet dhcp
"""


def test_stanzas_of_ifupdown_are_commented_out_and_others_stay(guard):
    changed = guard.without_stanzas(INTERFACES, "enp1s0")
    kept = [line for line in changed.splitlines() if line and not line.lstrip().startswith("#")]
    assert kept == [
        "source /etc/network/interfaces.d/*",
        "auto lo",
        "iface lo inet loopback",
        "auto enp2s0",
        "iface enp2s0 inet dhcp",
    ]
    assert "# set aside by minos-netplan:     gateway 192.168.1.1" in changed
    assert guard.without_stanzas(changed, "enp1s0") == changed


def test_files_that_interfaces_reads_are_found_wherever_they_are(guard, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "INTERFACES", tmp_path / "interfaces")
    (tmp_path / "more").mkdir()
    (tmp_path / "interfaces").write_text("source more/*.cfg\nsource-directory other\nsource nowhere/*\n")
    (tmp_path / "more/lan.cfg").write_text("source-directory ../other\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/wan").write_text("iface wan0 inet dhcp\n")
    assert {file.name for file in guard.files_of_ifupdown()} == {"interfaces", "lan.cfg", "wan"}


def test_the_first_original_is_kept(guard, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "ASIDE", tmp_path / "set-aside")
    file = tmp_path / "interfaces"
    file.write_text("of the installer\n")
    guard.replace(file, "ours, first\n")
    guard.replace(file, "ours, second\n")
    guard.replace(file, "ours, second\n")
    (kept,) = [path for path in (tmp_path / "set-aside").rglob("*") if path.is_file()]
    assert (kept.read_text(), file.read_text()) == ("of the installer\n", "ours, second\n")
    guard.replace(file, None)
    assert not file.exists()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_who_may_read_a_file_of_the_owner_stays(mode, guard, tmp_path):
    """One for ifupdown may hold the key of a WiFi."""
    file = tmp_path / "interfaces"
    file.write_text("wpa-psk secret\n")
    file.chmod(mode)
    guard.replace(file, "# set aside\nwpa-psk secret\n")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, guard.original(file))] == [mode, mode]
    guard.replace(file, "as netplan wants it\n", 0o600)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def look(**wanted: object) -> dict:
    given = {"address": "192.0.2.9/24", "interface": "", "gateway": "", "nameservers": [], "mtu": 0}
    given |= {"old": "", "after": False} | wanted
    command = [sys.executable, FILES / "look.py", json.dumps(given)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_an_interface_that_is_not_there_is_said_with_those_that_are():
    if not Path("/usr/sbin/ip").exists() and not Path("/sbin/ip").exists():
        pytest.skip("no ip command here")
    found = look(interface="enp99s0")
    (problem,) = found["problems"]
    assert problem.startswith("there is no interface enp99s0 (lan_interface); it has ")
    assert found["interface"] is None and not found["holds"]


# --- what NetworkManager keeps there itself -------------------------------------------------------------------------
UUID = "626dd384-8b3d-3690-9511-192b2c79b3fd"
OF_NM = {"renderer": "NetworkManager", "dhcp4": True, "networkmanager": {"uuid": UUID, "name": "Wired connection 1"}}


def looking(tree: Path, monkeypatch: pytest.MonkeyPatch, **files: dict) -> ModuleType:
    """look.py on a machine with three interfaces and these files of netplan."""
    look = loaded("look.py")
    moved(look, tree, monkeypatch)
    for link in (NIC, "enp2s0"):
        (tree / f"sys/class/net/{link}/device").mkdir(parents=True)
    (tree / "sys/class/net/docker0").mkdir()
    for name, content in files.items():
        (tree / f"etc/netplan/{name}.yaml").write_text(yaml.safe_dump(content))
    return look


def definitions(content: dict, tree: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Netplan's names of the interface in one file, each with the other interfaces that it is about."""
    look = looking(tree, monkeypatch, **{f"90-NM-{UUID}": content})
    return [(name, others) for _, name, others in look.definitions(NIC, MAC)]


@pytest.mark.parametrize("match", [{}, {"name": NIC}, {"name": "en*"}], ids=str)
def test_profiles_that_networkmanager_keeps_in_netplan_define_nothing(match, guard, tmp_path, monkeypatch):
    content = {"network": {"ethernets": {f"NM-{UUID}": OF_NM | {"match": match}}}}
    assert definitions(content, tmp_path, monkeypatch) == []
    monkeypatch.setattr(guard, "ETC", tmp_path / "etc/netplan")
    assert guard.other_files(NIC, MAC) == {}


@pytest.mark.parametrize(
    ("settings", "others"),
    [
        ({"match": {}}, ["enp2s0"]),
        ({"match": {"name": NIC}}, []),
        ({"match": {"name": "lan*"}}, None),
        ({"match": None}, None),
        ({}, None),
    ],
    ids=str,
)
def test_a_match_is_read_as_netplan_does_on_both_sides(settings, others, guard, tmp_path, monkeypatch):
    content = {"network": {"ethernets": {"lan": settings | {"dhcp4": True}}}}
    assert definitions(content, tmp_path, monkeypatch) == ([] if others is None else [("lan", others)])
    monkeypatch.setattr(guard, "ETC", tmp_path / "etc/netplan")
    assert bool(guard.other_files(NIC, MAC)) == (others is not None)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"00-installer": {NIC: {"dhcp4": True}}}, NIC),
        ({"00-installer": {"lan": {"match": {"macaddress": MAC}}}, "60-minos": {NIC: {}}}, "lan"),
        ({"60-minos": {NIC: {"dhcp4": False}}}, NIC),
        ({"60-minos": {"minos": {"match": {"macaddress": MAC}}}}, ""),
        ({"60-minos": {"enp2s0": {"dhcp4": False}}}, ""),
        ({}, ""),
    ],
    ids=["the installer's", "by MAC, and ours", "ours alone", "ours by MAC", "ours of another one", "none"],
)
def test_a_second_run_calls_the_interface_what_the_first_did(files, name, tmp_path, monkeypatch):
    written = {file: {"network": {"ethernets": content}} for file, content in files.items()}
    assert looking(tmp_path, monkeypatch, **written).id_of(NIC, MAC) == name


def test_ours_is_the_same_after_the_installers_file_is_gone(tmp_path, monkeypatch):
    """Where the owner names the interface by its MAC, and the installer by its name."""
    look = looking(tmp_path, monkeypatch, **{"00-installer": PLAIN})
    told = {"netplan_address": "10.0.0.9/24", "netplan_interface": MAC, "inventory_hostname": "node1"}

    def ours() -> str:
        found = {"interface": NIC, "owner": "networkd", "links": {NIC: {"mac": MAC}}, "id": look.id_of(NIC, MAC)}
        found["mtu"] = 0
        return rendered("netplan", "60-minos.yaml.j2", __netplan_found=found, **told)

    first = ours()
    assert NIC in yaml.safe_load(first)["network"]["ethernets"]
    (tmp_path / "etc/netplan/60-minos.yaml").write_text(first)
    (tmp_path / "etc/netplan/00-installer.yaml").unlink()
    assert ours() == first


WANTED = {"address": "10.0.0.9/24", "gateway": "", "nameservers": [], "mtu": 0, "old": "", "after": False}
FACTS = {"mac": MAC, "addresses": ["10.0.0.9/24"], "static": ["10.0.0.9"], "kind": "", "max_mtu": 0, "mtu": 1500}
FACTS |= {"carrier": True, "up": True}


@pytest.mark.parametrize(
    ("leads_to", "owner", "resolved", "told"),
    [
        ("run/resolvconf/resolv.conf", "ifupdown", False, True),
        ("run/resolvconf/resolv.conf", "networkd", False, False),
        ("run/systemd/resolve/stub-resolv.conf", "ifupdown", True, False),
        ("etc/my-servers", "ifupdown", False, False),
        (None, "ifupdown", False, False),
    ],
    ids=["resolvconf", "networkd's before", "resolved", "a file of the owner's", "no link"],
)
def test_name_servers_that_would_be_gone_after_a_boot(leads_to, owner, resolved, told, tmp_path, monkeypatch):
    look = looking(tmp_path, monkeypatch)
    for name, answer in {
        "active": lambda unit: resolved,
        "somebody_has": lambda *_: None,
        "answers_names": bool,
    }.items():
        monkeypatch.setattr(look, name, answer)
    if leads_to:
        look.RESOLV.symlink_to(tmp_path / leads_to)
    wanted = WANTED | {"nameservers": ["10.0.0.1"]}
    found = list(look.problems_of(wanted, NIC, FACTS, {}, owner))
    assert ["install systemd-resolved" in problem for problem in found] == [True] * told
    assert list(look.problems_of(WANTED, NIC, FACTS, {}, owner)) == []


@pytest.mark.parametrize(
    ("facts", "part", "said"),
    [
        ({}, "wireless", "enp1s0 is WiFi, which is not for Minos to set up: set static_ip: false"),
        ({}, "phy80211", "enp1s0 is WiFi"),
        ({"up": False, "carrier": False}, "", "enp1s0 is switched off there: sudo ip link set dev enp1s0 up"),
        ({"carrier": False}, "", "enp1s0 has no link: plug in its cable"),
    ],
)
def test_an_interface_that_cannot_be_used_is_said(facts, part, said, tmp_path, monkeypatch):
    """netplan would let ifupdown's WiFi go at the next boot: nobody tells it the key."""
    look = looking(tmp_path, monkeypatch)
    if part:
        (look.LINKS / NIC / part).mkdir()
    (problem,) = look.problems_of(WANTED, NIC, FACTS | facts, {}, "ifupdown")
    assert problem.startswith(said)


@pytest.mark.parametrize(
    ("now", "noted", "own"),
    [
        (1500, None, 0),
        (1450, None, 1450),
        (9000, {"interface": NIC, "mtu": 1500}, 0),
        (9000, {"interface": NIC, "mtu": 1450}, 1450),
        (1450, {"interface": "enp2s0", "mtu": 9000}, 1450),
    ],
    ids=["usual", "the owner's", "ours, over the usual", "ours, over the owner's", "a note of another interface"],
)
def test_packets_of_the_owners_size_stay_so(now, noted, own, tmp_path, monkeypatch):
    """His own file, which says it, is set aside: without a word of ours it were 1500 after the next boot."""
    look = looking(tmp_path, monkeypatch)
    if noted:
        look.NOTES[-1].parent.mkdir(parents=True)
        look.NOTES[-1].write_text(json.dumps(noted))
    assert look.own_mtu(NIC, {"mtu": now}) == own
    found = {"interface": NIC, "owner": "networkd", "links": {NIC: {"mac": MAC}}, "id": NIC, "mtu": own}
    for wanted in (0, 4000):
        told = {"netplan_address": "10.0.0.9/24", "netplan_mtu": wanted, "inventory_hostname": "node1"}
        text = rendered("netplan", "60-minos.yaml.j2", __netplan_found=found, **told)
        assert yaml.safe_load(text)["network"]["ethernets"][NIC].get("mtu", 0) == (wanted or own)


def test_what_sudo_says_first_is_no_answer():
    lines = ["sudo: unable to resolve host rig: Name or service not known", '{"interface": "enp1s0"}']
    assert evaluated("netplan", "__netplan_found", __netplan_look={"stdout_lines": lines}) == {"interface": "enp1s0"}
    lost = {"stdout": "\nsudo: unable to resolve host rig\n10.0.0.3\n"}
    told = {"netplan_peers": ["10.0.0.2", "10.0.0.3"], "__netplan_lost": lost}
    assert evaluated("netplan", "__netplan_unreached", **told) == ["10.0.0.3"]


# --- the role -------------------------------------------------------------------------------------------------------
def test_what_ifup_leaves_behind_outlives_every_unit_of_ours():
    lines = [*(ROOT / "roles/netplan/tasks").glob("*.yml"), FILES / "minos-netplan"]
    starts = [start for file in lines for start in re.findall(r"(?s)systemd-run.{300}", file.read_text())]
    assert len(starts) == 3 and all("KillMode=process" in start for start in starts)


def test_a_node_with_an_address_of_its_own_keeping_does_not_disturb_the_first():
    hosts = {
        "node1": {"__netplan_compared": {"skipped": True, "changed": False}},  # static_ip: false
        "node2": {"__netplan_compared": {"rc": 0}},
        "node3": {"__netplan_compared": {"rc": 1}},
        "node4": {},
    }
    for name in hosts:
        hosts[name]["inventory_hostname"] = name
    assert evaluated("netplan", "__netplan_first", ansible_play_hosts=list(hosts), hostvars=hosts) == "node3"


def test_reset_says_what_was_kept_beside():
    said = {"stdout": "/etc/network/interfaces was changed\n"}
    for given in ({"__netplan_forgotten": said}, {"__netplan_forgotten": said, "__netplan_removed": {"skipped": True}}):
        assert evaluated("netplan", "__netplan_kept_beside", **given) == said["stdout"].strip()
    assert evaluated("netplan", "__netplan_kept_beside", __netplan_removed=said) == said["stdout"].strip()
    assert evaluated("netplan", "__netplan_kept_beside") == ""


@pytest.mark.parametrize(
    ("said", "elsewhere"),
    [
        ("Failed to connect to the host via ssh: ssh: connect to host 10.0.0.9 port 22: No route to host", True),
        ("Failed to connect to the host via ssh: ssh: connect to host 10.0.0.9 port 22: Connection timed out", True),
        ("Failed to connect to the host via ssh: Host key verification failed.", False),
        ("Failed to connect to the host via ssh: you@10.0.0.9: Permission denied (publickey).", False),
    ],
)
def test_a_machine_that_answers_is_not_looked_for_where_it_was_met(said, elsewhere):
    """Or it would be said to be off, where trust.yml or a key is what it wants."""
    tried = {"unreachable": True, "msg": said}
    take = "Take the address that it has for now"
    told = {"first_contact_host": "10.0.0.57", "__first_contact_tried": tried}
    assert happens("first_contact", "main", take, **told) is elsewhere
    assert not happens("first_contact", "main", take, **told | {"first_contact_host": ""})
