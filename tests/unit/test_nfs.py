"""nfs_server and nfs_client: who exports, who mounts from where, and what is written."""

import os
import shlex
import subprocess

import pytest
import yaml
from paths import ROOT
from rendering import evaluated, rendered, shared, task

HOSTS = {"node1": "10.0.0.1", "node2": "10.0.0.2", "node3": "10.0.0.3"}
GROUPS = {"head": ["node1"], "nfs_server": ["node2"]}


def source(host, groups=GROUPS, **variables):
    return shared("nfs_client_source", host, HOSTS, groups, **variables)


def test_the_others_mount_from_the_member_that_exports():
    assert [source(host) for host in HOSTS] == ["10.0.0.2:/srv/minos", "", "10.0.0.2:/srv/minos"]
    assert [shared("nfs_server_enabled", host, HOSTS, GROUPS) for host in HOSTS] == [False, True, False]
    assert shared("nfs_server_clients", "node2", HOSTS, GROUPS) == ["10.0.0.1", "10.0.0.3"]
    assert shared("shared_dir_owner_node", "node3", HOSTS, GROUPS) == "node2"


def test_all_mount_from_a_nas():
    nas = "nas.lan:/volume1/minos"
    groups = {"head": ["node1"]}
    assert [source(host, groups, cluster_nfs_source=nas) for host in HOSTS] == [nas] * 3
    assert shared("shared_dir_owner_node", "node3", HOSTS, groups) == "node1"


@pytest.mark.parametrize("groups", [{"head": ["node1"]}, {"head": ["node1"], "nfs_server": []}], ids=["none", "empty"])
def test_nobody_mounts_where_the_share_is_there_already(groups):
    assert [source(host, groups) for host in HOSTS] == [""] * 3
    assert not any(shared("nfs_server_enabled", host, HOSTS, groups) for host in HOSTS)
    packages = shared("packages_names", "node1", HOSTS, groups)
    assert not [name for name in packages if name.startswith("nfs")]


def test_only_the_server_gets_the_servers_package():
    packages = {host: shared("packages_names", host, HOSTS, GROUPS) for host in HOSTS}
    assert [host for host in HOSTS if "nfs-kernel-server" in packages[host]] == ["node2"]
    assert [host for host in HOSTS if "nfs-common" in packages[host]] == ["node1", "node3"]


def test_the_export_is_to_addresses_only_with_root_squashed():
    text = rendered("nfs_server", "minos.exports.j2", nfs_server_clients=["10.0.0.1", "10.0.0.3"])
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    options = "(rw,sync,root_squash,no_subtree_check,crossmnt,sec=sys)"
    assert lines == [f'"/srv/minos" 10.0.0.1{options} 10.0.0.3{options}']
    alone = rendered("nfs_server", "minos.exports.j2", nfs_server_clients=[])
    assert not [line for line in alone.splitlines() if line and not line.startswith("#")], "no name is everybody"


@pytest.mark.parametrize("path", ["/srv/minos", "/srv/my-share"])
@pytest.mark.parametrize("kind", ["mount", "automount"])
def test_systemd_takes_the_units(kind, path, tmp_path):
    """By the role's own validator; and it does not take a unit that is wrong."""
    unit = subprocess.run(["systemd-escape", "--path", path], capture_output=True, text=True, check=True).stdout
    validator = evaluated(
        "nfs_client", "__nfs_client_validate", __nfs_client_found={"stdout_lines": [unit.strip()]}, item=kind
    )
    text = rendered("nfs_client", f"share.{kind}.j2", nfs_client_path=path, nfs_client_source="10.0.0.2:/srv/minos")

    def accepted(content):
        (file := tmp_path / "candidate").write_text(content)
        return subprocess.run(shlex.split(validator.replace("%s", str(file))), capture_output=True).returncode == 0

    assert accepted(text)
    assert not accepted(text.replace(f"Where={path}", "Where=/elsewhere"))


# --- another server, another path, none any more --------------------------------------------------------------------
@pytest.fixture
def client(tmp_path, monkeypatch):
    """A machine's units, among them the owner's: a client of 10.0.0.2 at /srv/minos. No systemctl is really run."""
    for kind in ("mount", "automount"):
        text = rendered("nfs_client", f"share.{kind}.j2", nfs_client_source="10.0.0.2:/srv/minos")
        (tmp_path / f"srv-minos.{kind}").write_text(text)
    (tmp_path / "srv-photos.mount").write_text("[Mount]\nWhat=10.0.0.2:/photos\nWhere=/srv/photos\n")
    (tmp_path / "bin").mkdir()
    programs = {
        "systemctl": f'echo "$*" >> {tmp_path}/asked; cat {tmp_path}/running 2>/dev/null; true',
        "findmnt": "echo autofs",
    }
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path


def done(client, script):
    script = script.replace("/etc/systemd/system", str(client))
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return ran.stdout.splitlines()


LOOK, LEAVE = "Look for a mount of ours that is not wanted any more", "Unmount it and forget it"
BOTH = ["unit srv-minos.automount", "unit srv-minos.mount"]


@pytest.mark.parametrize(
    ("source", "path", "unwanted"),
    [
        ("10.0.0.2:/srv/minos", "/srv/minos", []),
        ("10.0.0.3:/srv/minos", "/srv/minos", BOTH),
        ("10.0.0.2:/srv/minos", "/srv/other", BOTH),
        ("", "/srv/minos", BOTH),
    ],
    ids=["as before", "another server", "another path", "none"],
)
def test_a_former_mount_of_ours_goes(source, path, unwanted, client):
    told = {"nfs_client_source": source, "nfs_client_path": path}
    found = done(client, task("nfs_client", "leave", LOOK, **told))
    assert found == unwanted
    done(client, task("nfs_client", "leave", LEAVE, __nfs_client_former={"stdout": "\n".join(found)}))
    assert (client / "srv-minos.mount").exists() is (client / "srv-minos.automount").exists() is (not unwanted)
    assert (client / "srv-photos.mount").exists(), "the owner's"
    if unwanted:
        assert "disable --now srv-minos.automount" in (client / "asked").read_text()


def test_a_job_keeps_its_share(client):
    (client / "running").write_text("minos-train@demo.service loaded active running Minos: job demo\n")
    found = done(client, task("nfs_client", "leave", LOOK, nfs_client_source=""))
    assert found == [*BOTH, "job demo"]
    assert done(client, task("nfs_client", "leave", LOOK, nfs_client_source="10.0.0.2:/srv/minos")) == []


def test_a_former_client_can_become_the_server(client):
    """The mount goes before the role looks; in check mode, where it stays, it is not looked at."""
    first, *_ = yaml.safe_load((ROOT / "roles/nfs_server/tasks/main.yml").read_text())
    assert first["ansible.builtin.include_role"] == {"name": "nfs_client", "tasks_from": "leave"}
    assert "when" not in first, "a job of any machine is asked for before an export changes"
    look = task("nfs_server", "export", "Look at the directory, and at what the owner exports himself")
    assert done(client, look) == ["ours"]
    (client / "srv-minos.automount").unlink()
    assert "type autofs" in done(client, look), "somebody else's mount is refused"


# What `stat` says of the mounted directory each time -> status, what is said, and what systemd is asked for.
ANSWERS = {
    "there": (["exit 0"], 0, "", ["start"]),
    "root is nobody": (['echo "stat: Permission denied" >&2; exit 1'], 0, "", ["start"]),
    "gone": (['echo "stat: Stale file handle" >&2; exit 1', "exit 0"], 0, "", ["start", "stop", "start"]),
    "gone for good": (['echo "stat: Stale file handle" >&2; exit 1'] * 2, 1, "no answer", ["start", "stop", "start"]),
    "silent": (["sleep 30"], 1, "no answer in 1 s", ["start"]),
}


@pytest.mark.parametrize(("answers", "status", "said", "asked"), ANSWERS.values(), ids=ANSWERS)
def test_a_share_that_is_mounted_must_answer_too(answers, status, said, asked, tmp_path):
    """Its server may have been installed again, or has it on another disk; systemctl and stat are stand-ins."""
    for number, answer in enumerate(answers):
        (tmp_path / f"answer{number}").write_text(answer)
    counted = f'cd {tmp_path}; n=$(cat seen 2>/dev/null || echo 0); echo $((n + 1)) > seen; exec sh "answer$n"'
    noted = f'[ "$1" != is-failed ] || exit 1; echo "$1" >> {tmp_path}/asked'
    for name, script in {"stat": counted, "systemctl": noted}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    told = {"nfs_client_patience": 1, "__nfs_client_unit": "srv-minos"}
    script = task("nfs_client", "mount", "Mount it", **told)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=path, timeout=60, check=False)
    assert (ran.returncode, ran.stdout.strip()[: len(said)]) == (status, said), ran.stderr
    assert (tmp_path / "asked").read_text().split() == asked


def test_the_defaults_say_what_the_mount_must_survive():
    options = yaml.safe_load((ROOT / "roles/nfs_client/defaults/main.yml").read_text())["nfs_client_options"].split(",")
    assert {"hard", "_netdev", "nofail", "nosuid", "nodev"} <= set(options)
    assert "soft" not in options
