"""ssh_mesh: at which port a node is asked whether the service user gets in."""

import os
import subprocess

import pytest
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
