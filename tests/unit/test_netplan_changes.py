"""A change of the address is kept, taken back or undone, with all that was set aside for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from guard import NIC, STANZAS, Asked, Guard

UUID = "626dd384-8b3d-3690-9511-192b2c79b3fd"
PLAIN = {"network": {"version": 2, "ethernets": {"enp1s0": {"dhcp4": True}}}}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Guard(tmp_path, monkeypatch)


def profile(machine: Guard, uuid: str, name: str, autoconnect: str = "yes") -> None:
    """The one of NetworkManager that is in force."""
    machine.answers |= {
        ("-g", "GENERAL.CON-UUID", "device", "show", NIC): uuid + "\n",
        ("-g", "connection.id", "connection", "show", "uuid", uuid): name + "\n",
        ("-g", "connection.autoconnect", "connection", "show", "uuid", uuid): autoconnect + "\n",
    }


def autoconnects(machine: Guard) -> list[tuple[str, ...]]:
    """What was written into profiles."""
    return [command[4:] for command in machine.ran if command[:3] == ("nmcli", "connection", "modify")]


@pytest.mark.parametrize(("uuid", "name"), [("ours", f"netplan-{NIC}"), ("of-yore", "netplan-lan")])
def test_a_profile_of_netplan_is_not_put_aside(uuid, name, machine):
    """Its UUID comes from the name of its file: the old one and ours may be the same."""
    profile(machine, uuid, name)
    machine.change("NetworkManager")
    profile(machine, "ours", f"netplan-{NIC}")
    machine.keep(None)
    machine.undo(Asked())
    assert autoconnects(machine) == []


@pytest.mark.parametrize("name", ["office", f"netplan-NM-{UUID}"])
@pytest.mark.parametrize("before", ["yes", "no"])
def test_a_profile_of_the_owner_gets_back_what_it_had(before, name, machine):
    profile(machine, "theirs", name, before)
    machine.change("NetworkManager")
    profile(machine, "ours", f"netplan-{NIC}")
    machine.keep(None)
    machine.change("NetworkManager", mtu=1400)
    machine.keep(None)
    assert set(autoconnects(machine)) == {("theirs", "connection.autoconnect", "no")}
    machine.ran.clear()
    machine.undo(Asked())
    assert autoconnects(machine) == [("theirs", "connection.autoconnect", before)]


@pytest.mark.parametrize("tried", [True, False], ids=["taken back", "never tried"])
def test_what_was_in_force_comes_back_and_nothing_that_nobody_has_proved(tried, machine):
    machine.change(address="10.0.0.9/24")
    machine.keep(None)
    in_force = (machine.ETC / machine.OURS).read_text()
    if tried:
        machine.change(address="10.0.0.77/24")
        machine.restore(None)
    else:
        machine.CANDIDATE.write_text(in_force.replace("10.0.0.9", "10.0.0.77"))
    machine.undo(Asked())
    machine.undo(Asked())
    machine.redo(None)
    assert (machine.ETC / machine.OURS).read_text() == in_force


def test_an_address_goes_from_an_interface_that_nobody_configured(machine):
    machine.change("nobody")
    machine.ran.clear()
    machine.restore(None)
    flush = ("ip", "-4", "address", "flush", "dev", NIC, "scope", "global", "permanent")
    stop = ("systemctl", "stop", "systemd-networkd.socket", "systemd-networkd")
    assert machine.ran.index(stop) < machine.ran.index(flush), "or networkd would give it again"


@pytest.mark.parametrize("kept", [True, False], ids=["undone", "taken back"])
def test_the_size_of_packets_comes_back(kept, machine):
    back, mtu = ("ip", "link", "set", "dev", NIC, "mtu", "1500"), machine.LINKS / NIC / "mtu"
    machine.change(mtu=9000)
    mtu.write_text("9000\n")
    if kept:
        machine.keep(None)
        machine.change(mtu=4000)
        machine.keep(None)
        machine.undo(Asked())
    else:
        machine.restore(None)
    assert machine.ran.index(back) < machine.ran.index(("ifup", "--force", NIC)), "which may set one of its own"
    mtu.write_text("1500\n")
    machine.ran.clear()
    machine.use_old(json.loads(machine.BEFORE.read_text()) if kept else {"interface": NIC, "mtu": 1500, **NOBODY})
    assert back not in machine.ran, "a NIC may lose its link over it"


def test_packets_have_their_size_from_before_us_where_we_say_none_any_more(machine):
    back, mtu = ("ip", "link", "set", "dev", NIC, "mtu", "1500"), machine.LINKS / NIC / "mtu"
    machine.change(mtu=9000)
    mtu.write_text("9000\n")
    machine.keep(None)
    machine.change(mtu=9000)
    assert back not in machine.ran
    machine.keep(None)
    machine.change()
    assert back in machine.ran, "networkd leaves the last one"
    mtu.write_text("1500\n")
    machine.keep(None)
    machine.ran.clear()
    mtu.write_text("1400\n")  # by its owner
    machine.change()
    assert not [command for command in machine.ran if "mtu" in command]


def test_the_way_back_can_be_armed_from_within_the_way_back(machine, monkeypatch):
    """As `redo` does, which the timer starts: systemd makes no unit anew that runs."""
    monkeypatch.setattr(machine.program, "active", lambda unit: unit == "minos-netplan-restore.service")
    machine.change()
    (armed,) = (command for command in machine.ran if command[0] == "systemd-run")
    assert "--unit=minos-netplan-restore-again" in armed
    machine.ran.clear()
    machine.keep(None)
    assert ("systemctl", "stop", "minos-netplan-restore-again.timer") in machine.ran


NOBODY = {"owner": "nobody", "networkd": False}
MORE = "auto eth1\niface eth1 inet dhcp\nsource *\n"


def test_what_the_owner_has_changed_since_is_kept_beside(machine, capsys, monkeypatch):
    machine.change()
    machine.keep(None)
    ours = machine.INTERFACES.read_text()
    machine.INTERFACES.write_text(ours + MORE)
    machine.change(mtu=1400)  # another one in between, which leaves it as it is
    machine.keep(None)
    machine.undo(Asked())
    machine.undo(Asked())  # as after a break-off
    copy = machine.INTERFACES.with_name(".interfaces.before-minos-reset")
    assert (machine.INTERFACES.read_text(), copy.read_text()) == (STANZAS, ours + MORE)
    assert copy not in machine.files_of_ifupdown() and copy.suffix != ".yaml", "nobody reads it"
    machine.program.__file__ = str(machine.STATE.parent / "script")
    Path(machine.program.__file__).touch()
    machine.forget(None)
    said = f"{machine.INTERFACES} was changed after Minos had: that version is kept as {copy}"
    assert said in capsys.readouterr().out


def test_what_the_owner_has_changed_again_where_we_change_again_is_kept_too(machine):
    machine.change()
    machine.keep(None)
    machine.INTERFACES.write_text(MORE + STANZAS)
    machine.change(mtu=1400)
    machine.keep(None)
    machine.undo(Asked())
    assert MORE in machine.INTERFACES.with_name(".interfaces.before-minos-reset").read_text()


def test_what_the_owner_has_changed_is_there_again_with_our_settings(machine):
    machine.change()
    machine.keep(None)
    changed = machine.INTERFACES.read_text() + MORE
    machine.INTERFACES.write_text(changed)
    machine.undo(Asked())
    machine.redo(None)
    assert machine.INTERFACES.read_text() == changed
    assert list(machine.INTERFACES.parent.glob(".*")) == []
    machine.undo(Asked())
    assert machine.INTERFACES.with_name(".interfaces.before-minos-reset").read_text() == changed


def test_what_we_have_written_is_nobodys_work(machine, capsys, monkeypatch):
    machine.change()
    machine.keep(None)
    machine.change(mtu=1400)
    machine.keep(None)
    machine.undo(Asked())
    assert list(machine.INTERFACES.parent.glob(".*")) == []


def test_what_was_tried_is_kept_and_not_what_was_written_since(machine):
    """By a run of somebody else's, between the two commands that are typed on the machine itself."""
    machine.change(address="10.0.0.9/24")
    tried = machine.CANDIDATE.read_text()
    machine.CANDIDATE.write_text(tried.replace("10.0.0.9", "10.0.0.77"))
    machine.keep(None)
    assert (machine.ETC / machine.OURS).read_text() == tried


def test_the_timer_stays_armed_until_all_is_kept(machine, monkeypatch):
    machine.change()
    machine.ran.clear()

    def full(path, text, mode=0o644):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(machine.program, "write", full)
    with pytest.raises(OSError, match="No space left"):
        machine.keep(None)
    assert not [command for command in machine.ran if command[:2] == ("systemctl", "stop")]


def test_a_resolv_conf_that_nobody_may_write_stays_as_it_is(machine, monkeypatch):
    real = machine.program.replace

    def replace(file, text, mode=None):
        if file == machine.RESOLV:
            raise PermissionError(1, "Operation not permitted")
        real(file, text, mode)

    machine.RESOLV.parent.mkdir(exist_ok=True)
    machine.RESOLV.write_text("nameserver 10.0.0.53\n")
    machine.change()
    monkeypatch.setattr(machine.program, "replace", replace)
    machine.keep(None)
    assert not machine.NOTE.exists() and machine.RESOLV.read_text() == "nameserver 10.0.0.53\n"
