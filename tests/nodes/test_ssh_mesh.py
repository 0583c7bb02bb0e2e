"""ssh_mesh: everybody gets in everywhere by key with host keys checked, nobody by password."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# `|| exit 1` below: testinfra takes status 255 for a failure of its own connection.
LOGIN = "ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=10 -p %s %s hostname"


def test_ssh_mesh_logs_in_to_every_member_by_name_and_address(host, told):
    for peer, address in told.members.items():
        for target in (peer, address):
            login = host.run(f"runuser -u %s -- {LOGIN} || exit 1", told.user, str(told.ssh_port), target)
            assert (login.rc, login.stdout.strip()) == (0, peer), f"to {target}: {login.stderr}"


def test_ssh_mesh_a_wrong_host_key_is_refused(host, told):
    """The login above must fail where the peer is not the one that we know."""
    nothing_known = "-o GlobalKnownHostsFile=/dev/null -o UserKnownHostsFile=/dev/null"
    command = f"runuser -u %s -- {LOGIN.replace(' -p', f' {nothing_known} -p')} || exit 1"
    login = host.run(command, told.user, str(told.ssh_port), told.head)
    assert login.rc == 1
    assert "Host key verification failed" in login.stderr


def test_ssh_mesh_offers_keys_only(host, told):
    """What sshd answers to somebody without a key, asked on the cluster network."""
    login = host.run(
        "runuser -u %s -- ssh -o StrictHostKeyChecking=yes -o PubkeyAuthentication=no -o NumberOfPasswordPrompts=0 "
        "-o ConnectTimeout=10 -p %s %s true || exit 1",
        told.user, str(told.ssh_port), told.address,
    )  # fmt: skip
    assert login.rc == 1
    assert "Permission denied (publickey)." in login.stderr


def test_ssh_mesh_the_private_key_is_private(host, told):
    key = host.file(f"{told.state_path}/.ssh/id_ed25519")
    assert (key.uid, key.mode) == (told.uid, 0o600)


def test_ssh_mesh_the_keys_open_from_the_members_only(host, told):
    lines = host.file(f"{told.state_path}/.ssh/authorized_keys").content_string.splitlines()
    keys = [line for line in lines if line and not line.startswith("#")]
    assert len(keys) == len(told.members)
    sources = ",".join(told.members.values())
    assert all(line.startswith(f'from="{sources}" ssh-ed25519 ') for line in keys)


def test_ssh_mesh_no_algorithm_fails_the_audit(told):
    """By ssh-audit, from the network, where it can be reached without proxies."""
    if not (program := shutil.which("ssh-audit")):
        pytest.skip("ssh-audit is not installed here")
    command = [*told.outsider, program, "--no-colors", f"--port={told.ssh_port}", told.address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "(gen) banner" in done.stdout, done.stdout + done.stderr
    assert re.findall(r"^.*\[fail\].*$", done.stdout, re.MULTILINE) == []


def test_ssh_mesh_no_guard_is_waiting_to_take_the_settings_back(host):
    assert not host.service("minos-sshd-back.timer").is_running
    assert not host.file("/etc/ssh/sshd_config.d/10-minos.conf.trying").exists
    assert host.run("cmp /etc/ssh/sshd_config.d/10-minos.conf.candidate /etc/ssh/sshd_config.d/10-minos.conf").rc == 0
