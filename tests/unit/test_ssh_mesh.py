"""ssh_mesh: at which port a node is asked whether the service user gets in, and how sshd's settings are guarded."""

import os
import subprocess
from pathlib import Path

import pytest
from paths import ROOT
from rendering import task

TASK = "Ask sshd what it does now, and log in as the service user"
SOCKET = "[::]:2222 (Stream)\n0.0.0.0:2222 (Stream)"


@pytest.mark.parametrize(
    ("active", "listens", "port"),
    [(False, "[::]:22 (Stream)", "2200"), (True, SOCKET, "2222"), (True, "/run/sshd (Stream)", "2200")],
    ids=["sshd listens", "systemd listens", "systemd listens on a path"],
)
def test_the_login_is_tried_where_somebody_listens(active, listens, port, tmp_path):
    """The commands of a node are stand-ins that answer; where sshd lies is the only thing changed in the task."""
    answers = {
        "sshd": "printf '%s\\n' 'port 2200' 'addressfamily any' 'passwordauthentication no'",
        "systemctl": f"[ \"$1\" = is-active ] && exit {0 if active else 3}; printf '%s\\n' '{listens}'",
        "runuser": 'echo "$@"',
    }
    for name, script in answers.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    told = {"inventory_hostname": "node1", "ssh_mesh_members": {"node1": "10.0.0.1"}, "ssh_mesh_user": "minos"}
    command = task("ssh_mesh", "main", TASK, **told).replace("/usr/sbin/", f"{tmp_path}/")
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=path, check=True).stdout
    assert "passwordauthentication no" in said.splitlines()
    assert f" -p {port} 10.0.0.1 true" in said


# --- the guard of sshd's settings -----------------------------------------------------------------------------------
@pytest.fixture
def guard(tmp_path):
    """minos-sshd in a tree of its own, as a function of its verb; systemd and sshd are stand-ins."""
    tree = tmp_path / "tree"
    for folder in ("etc/ssh/sshd_config.d", "etc/systemd/system", "usr/sbin", "bin"):
        (tree / folder).mkdir(parents=True)
    for name in ("usr/sbin/sshd", "bin/systemctl", "bin/systemd-run"):
        (tree / name).write_text("#!/bin/sh\n")
        (tree / name).chmod(0o755)
    text = (ROOT / "roles/ssh_mesh/files/minos-sshd").read_text()
    program = tree / "minos-sshd"
    program.write_text(text.replace("/etc/", f"{tree}/etc/").replace("/usr/sbin/", f"{tree}/usr/sbin/"))
    program.chmod(0o755)

    def verb(name):
        path = {"PATH": f"{tree}/bin:{os.environ['PATH']}"}
        subprocess.run([program, name], env=path, check=True, timeout=60)
        return {
            str(file.relative_to(tree / "etc")): file.read_text() for file in tree.glob("etc/**/*") if file.is_file()
        }

    verb.settings = tree / "etc/ssh/sshd_config.d/10-minos.conf"
    return verb


BOOT = ("systemd/system/minos-sshd-boot.service", "systemd/system/multi-user.target.wants/minos-sshd-boot.service")
SETTINGS = "ssh/sshd_config.d/10-minos.conf"


@pytest.mark.parametrize("before", ["old\n", None], ids=["others", "none"])
def test_settings_that_nobody_has_proved_do_not_outlive_the_power(before, guard):
    if before:
        guard.settings.write_text(before)
    Path(f"{guard.settings}.candidate").write_text("new\n")
    tried = guard("try")
    assert tried[SETTINGS] == "new\n" and set(BOOT) <= set(tried)
    assert tried[BOOT[0]] == tried[BOOT[1]] and "/minos-sshd boot\n" in tried[BOOT[0]]
    kept = {f"{SETTINGS}.candidate": "new\n"} | ({SETTINGS: before} if before else {})
    assert guard("boot") == kept
    guard("try")
    assert guard("keep") == kept | {SETTINGS: "new\n"}
    assert guard("boot") == kept | {SETTINGS: "new\n"}, "nothing is being tried"


def test_systemd_takes_the_unit_of_the_guard(guard, tmp_path):
    Path(f"{guard.settings}.candidate").write_text("new\n")
    (tmp_path / "minos-sshd-boot.service").write_text(guard("try")[BOOT[0]])
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "minos-sshd-boot.service"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
