"""What playbooks/reset.yml calls, refuses and brings back; on nodes it is tried in tests/lab and tests/vm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from guard import STANZAS, Asked, Guard
from paths import ROLES, ROOT
from rendering import evaluated, rendered, task, templar

CALLED = yaml.safe_load((ROOT / "roles/reset/tasks/main.yml").read_text())[0]["loop"]
WITHOUT = {"first_contact", "preflight_nodes"}  # these only look


def test_every_role_of_site_takes_back_what_it_made():
    roles = {
        role["role"]
        for play in yaml.safe_load((ROOT / "site.yml").read_text())
        for role in play.get("roles", [])
        if role["role"] not in WITHOUT
    }
    assert roles <= {role.name for role in ROLES if (role / "tasks/reset.yml").exists()}


def test_every_reset_is_called_once():
    written = sorted(role.name for role in ROLES if (role / "tasks/reset.yml").exists())
    assert sorted([*CALLED, "node_before"]) == written


def test_upgrades_begin_again_when_apt_is_needed_no_more():
    """Their timers may fire at once, and would hold apt's lock against us."""
    assert CALLED.index("host_tuning") > CALLED.index("packages")


# --- what is refused ------------------------------------------------------------------------------------------------
def refusals(limit: list[str], silent: tuple[str, ...] = (), running: tuple[str, ...] = ()) -> list[str]:
    answers = {}
    for name in limit:
        found = {"ours": True, "running": list(running) if name == limit[-1] else []}
        lines = ["sudo: unable to resolve host", json.dumps(found)]
        answers[name] = {"unreachable": True} if name in silent else {"stdout_lines": lines}
    return evaluated(
        "reset_ask",
        "__reset_ask_refusals",
        ansible_play_hosts_all=limit,
        hostvars={name: {"__reset_ask_look": answer} for name, answer in answers.items()},
        reset_ask_members=["node1", "node2", "node3"],
        reset_ask_indispensable=["node1", "node1"],
    )


@pytest.mark.parametrize("limit", [["node1", "node2", "node3"], ["node3"], ["node2", "node3"]], ids=",".join)
def test_all_together_or_those_on_whom_nobody_depends_may_go(limit):
    assert refusals(limit) == []


def test_the_head_does_not_go_before_the_others():
    (said, advice) = refusals(["node1", "node3"])
    assert said.startswith("node1 cannot leave before node2: ")
    assert "run site.yml" in advice


def test_a_node_that_lets_nobody_become_root_is_said():
    look = {
        "stdout": "sudo: a password\nis required",
        "stdout_lines": ["sudo: a password", "is required"],
        "stderr": "",
    }
    said = evaluated(
        "reset_ask",
        "__reset_ask_refusals",
        ansible_play_hosts_all=["node1"],
        hostvars={"node1": {"__reset_ask_look": look}},
    )
    assert said == ["node1 cannot be looked at: sudo: a password is required"]


def test_every_silent_node_and_every_running_job_is_named():
    said = refusals(["node1", "node2", "node3"], silent=("node1", "node2"), running=("demo", "two"))
    assert [line.partition(":")[0] for line in said] == [
        "node1 does not answer",
        "node2 does not answer",
        "Job demo is running on node3",
        "Job two is running on node3",
    ]


# --- what was there before ------------------------------------------------------------------------------------------
FOLDER = {"owner": 0, "group": 0, "mode": "0755", "file": False}
# What node_before wrote down of a directory -> whether what is in it goes. Nothing: the path came later.
WRITTEN_DOWN = pytest.mark.parametrize(
    ("written", "goes"), [({"?": None}, True), ({"?": FOLDER}, False), ({}, False)], ids=["absent", "there", "nothing"]
)


def before_us(path: Path, written: dict) -> dict:
    """The variables of role reset, on a node where this was written down of a path."""
    paths = {str(path): state for state in written.values()} | {"/elsewhere": None}
    found = {"before": {"late": False, "host": "", "paths": paths}}
    return templar("reset", reset_found=found).available_variables


@WRITTEN_DOWN
def test_the_users_home_is_emptied_only_where_we_have_made_it(written, goes, tmp_path):
    (tmp_path / "jobs/one").mkdir(parents=True)
    (tmp_path / "theses").mkdir()
    (tmp_path / "theses/mine.tex").write_text("years of work")
    told = {"service_user_home": str(tmp_path), **before_us(tmp_path, written)}
    script = task("service_user", "reset", "Empty its home but for the jobs", **told)
    subprocess.run(["sh", "-c", script], check=True, timeout=60)
    assert (tmp_path / "jobs/one").exists()
    assert (tmp_path / "theses/mine.tex").exists() is not goes


@WRITTEN_DOWN
def test_the_environment_is_removed_only_where_we_have_made_it(written, goes):
    path = Path("/data/env")
    told = {"python_env_path": str(path), **before_us(path, written)}
    told |= {"__python_env_installers": {"stdout_lines": ["/opt/minos/uv"]}}
    removed = task("python_env", "reset", "Remove the environment, its installers and what they came from", **told)
    assert ("/data/env" in removed) is goes
    assert "/opt/minos/uv" in removed and "/opt/minos/conda" not in removed, "one that is not ours"


def plan(**found) -> list[str]:
    """What playbooks/reset.yml says of node1, before it asks."""
    before = {"late": False, "host": "", "host_name": {"static": "node1"}, "paths": {}}
    nothing = {"answers": True, "names": [], "size": "0", "uid": ""}
    known = {"ours": True, "before": before, "packages": {"new": [], "gone": []}, "unknown": []}
    known |= {"shared": nothing, "owners": nothing, "state": nothing} | found
    told = {"ansible_play_hosts": ["node1"], "ansible_play_hosts_all": ["node1"], "reset_ask_members": ["node1"]}
    told |= {"reset_ask_remove_data": True, "hostvars": {"node1": {"__reset_ask_found": known}}}
    return rendered("reset_ask", "plan.j2", **told).splitlines()


def test_a_disk_that_is_slow_to_count_is_no_share_that_hangs(tmp_path):
    """Or its data would stay, silently, although their removal was asked for twice."""
    (tmp_path / "shared/jobs/demo").mkdir(parents=True)
    (tmp_path / "shared/.minos-shared").write_text("made jobs\n")
    (tmp_path / "du").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "du").chmod(0o755)
    program = (ROOT / "roles/reset_ask/files/look.py").read_text().replace("patience=30", "patience=1")
    asked = {"user": "nobody", "shared": str(tmp_path / "shared"), "state": "/nowhere", "environment": "/nowhere"}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", program, json.dumps(asked)]
    look = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=path, timeout=60).stdout)
    found = look["shared"]
    assert (found["answers"], found["names"], found["size"]) == (True, ["jobs/demo"], "nobody waited for its size")
    assert found["uid"] == str(os.getuid())


@pytest.mark.parametrize(("shared", "state", "named"), [(False, True, "/srv/minos"), (True, False, "/var/lib/minos")])
def test_data_that_could_not_be_removed_are_not_promised_to_go(shared, state, named):
    found = {"ours": True, "running": [], "shared": {"answers": shared}, "state": {"answers": state}}
    told = {
        "ansible_play_hosts_all": ["node1"],
        "hostvars": {"node1": {"__reset_ask_look": {"stdout_lines": [json.dumps(found)]}}},
        "reset_ask_members": ["node1"],
        "reset_ask_indispensable": ["node1"],
        "reset_ask_shared": "/srv/minos",
        "reset_ask_state": "/var/lib/minos",
    }
    assert evaluated("reset_ask", "__reset_ask_refusals", **told) == []
    (said,) = evaluated("reset_ask", "__reset_ask_refusals", **told, reset_ask_remove_data=True)
    assert said.startswith(f"node1: {named} does not answer")


@pytest.mark.parametrize("kind", ["ext4", "nfs"])
def test_folders_get_back_what_they_were_unless_gone_or_on_a_share(kind, tmp_path):
    """chown and stat --file-system are stand-ins: who runs the tests may be no root, and has no NFS."""
    for name in ("changed", "same"):
        (tmp_path / name).mkdir(mode=0o755)
    real = shutil.which("stat")
    programs = {
        "chown": f'echo "$@" >> {tmp_path}/owned',
        "stat": f'case $1 in --file-system) echo {kind} ;; *) exec {real} "$@" ;; esac',
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    mine = {"owner": os.getuid(), "group": os.getgid(), "file": False}
    paths = {"changed": mine | {"mode": "2775"}, "same": mine | {"mode": "0755"}, "gone": mine | {"mode": "0700"}}
    before = {"paths": {str(tmp_path / name): was for name, was in paths.items()} | {"/nowhere": None}}
    script = task(
        "node_before", "reset", "Give folders their owner and mode back", reset_before=before, ansible_check_mode=False
    )
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "-c", script]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=path, timeout=60).stdout
    given = [f"given back {tmp_path}/changed"] if kind == "ext4" else []
    assert said.splitlines() == given
    assert oct((tmp_path / "changed").stat().st_mode & 0o7777) == ("0o2775" if given else "0o755")
    assert (tmp_path / "owned").exists() == bool(given)


def test_what_is_left_because_nobody_knows_is_said(tmp_path):
    known = {"user": "nobody-of-ours", "shared": str(tmp_path), "state": str(tmp_path), "environment": "/not/there"}
    command = [sys.executable, str(ROOT / "roles/reset_ask/files/look.py"), json.dumps(known)]
    look = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert look["unknown"] == [str(tmp_path)], "and the other one is not there"
    said = plan(unknown=["/data/minos", "/opt/minos/envs/dist-train"])
    assert "node1: stays: what is in /data/minos, as nobody wrote down whether it was there before" in said
    assert not [line for line in said if "goes" in line and "Python environment" in line]
    assert [line for line in plan() if "goes" in line and "Python environment" in line]


def test_folders_of_the_owners_are_said_to_stay():
    kept = {"answers": True, "size": "3G", "uid": "2600"}
    said = plan(shared={**kept, "names": ["jobs/one"]}, owners={**kept, "names": ["models/own"]})
    assert said[-2:] == [
        "node1: goes: jobs/one in /srv/minos (3G)",
        "node1: stays: models/own in /srv/minos (3G), as nobody wrote down that we made the folder",
    ]


# --- the network's guard --------------------------------------------------------------------------------------------
@pytest.fixture
def guard(tmp_path, monkeypatch):
    """minos-netplan in a tree of its own, after a change was kept."""
    guard = Guard(tmp_path, monkeypatch)
    guard.change()
    guard.keep(None)
    assert "set aside" in guard.INTERFACES.read_text() and guard.RESOLV.exists()
    return guard


def test_the_old_settings_come_back_with_a_timer_that_brings_ours_again(guard):
    guard.ran.clear()
    guard.undo(Asked())
    assert guard.INTERFACES.read_text() == STANZAS
    assert list(guard.ETC.iterdir()) == [] and not guard.RESOLV.exists()
    assert [command[-1] for command in guard.ran if command[0] == "systemd-run"] == ["redo"]
    assert ("ifup", "--force", "enp1s0") in guard.ran
    assert ("systemctl", "--quiet", "disable", "systemd-networkd") in guard.ran


def test_ours_come_back_when_nobody_forgets_them(guard):
    guard.undo(Asked())
    guard.redo(None)
    assert "# set aside by minos-netplan: iface enp1s0 inet dhcp" in guard.INTERFACES.read_text()
    assert [file.name for file in guard.ETC.iterdir()] == [guard.OURS]
    assert "10.0.0.1" in guard.RESOLV.read_text()
    with pytest.raises(guard.Refused, match="gone back to the settings of Minos"):
        guard.forget(None)


def test_nothing_is_forgotten_before_the_old_settings_are_in_force(guard, monkeypatch):
    def fails(note):
        raise OSError("no ifup")

    monkeypatch.setattr(guard.program, "use_old", fails)
    with pytest.raises(OSError, match="no ifup"):
        guard.undo(Asked())
    with pytest.raises(guard.Refused, match="not in force yet"):
        guard.forget(None)
    monkeypatch.undo()


def test_a_second_undo_goes_on_where_the_first_broke_off(guard, monkeypatch):
    used = []
    monkeypatch.setattr(guard.program, "use_old", used.append)
    guard.undo(Asked())
    guard.undo(Asked())
    assert len(used) == 2


def test_after_a_power_cut_under_the_old_settings_they_are_left_alone(guard, monkeypatch):
    guard.undo(Asked())
    for file in guard.TRIAL.iterdir():  # /run
        file.unlink()
    guard.ran.clear()
    guard.undo(Asked())
    assert guard.ran == [] and guard.UNDONE.exists()


def test_forgetting_leaves_nothing(guard, tmp_path, monkeypatch):
    script = tmp_path / "minos-netplan"
    script.touch()
    monkeypatch.setattr(guard.program, "__file__", str(script))
    guard.undo(Asked())
    guard.forget(None)
    assert not script.exists() and not guard.STATE.exists() and not guard.TRIAL.exists()
