"""site.yml itself with bad inventories: refused before any connection is made, as a recording ssh proves."""

from __future__ import annotations

import os
import stat
import subprocess
from types import SimpleNamespace

import pytest
from inventories import GOOD, changed, write
from paths import ROOT

# In place of the ssh program, the one thing that is not real here: no machine is to be reached from these tests.
# It writes down its arguments but for the command to run there, which is the one with spaces.
RECORDER = """\
#!/bin/sh
words=
for word; do case $word in *" "*) ;; *) words="$words $word" ;; esac; done
echo "$words" >> {log}
echo "{says}" >&2
exit 255
"""
OFF = "ssh: connect to host 192.168.1.101 port 22: No route to host"
NODE2, NODE3 = "ansible_host: 192.168.1.101", "ansible_host: 192.168.1.102"
SERVERS = "cluster_nameservers: [192.168.1.1]"


@pytest.fixture
def run(tmp_path):
    """Run a playbook on an inventory; returns what it printed, the recap's hosts and the connections it tried."""

    def playbook(text, *arguments, name="site.yml", says=OFF):
        log, ssh = tmp_path / "connections", tmp_path / "ssh"
        ssh.write_text(RECORDER.format(log=log, says=says))
        ssh.chmod(ssh.stat().st_mode | stat.S_IXUSR)
        inventory = write(tmp_path, text)
        environment = os.environ | {"ANSIBLE_SSH_EXECUTABLE": str(ssh), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "400"}
        command = ["ansible-playbook", "-i", inventory, name, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        recap = [line.split()[0] for line in done.stdout.partition("PLAY RECAP")[2].splitlines() if "ok=" in line]
        tried = log.read_text().splitlines() if log.exists() else []
        lines = (done.stdout + done.stderr).splitlines()
        return SimpleNamespace(code=done.returncode, lines=lines, hosts=recap, tried=tried, file=str(inventory))

    return playbook


REFUSED = {
    "an address twice": ([(NODE3, NODE2)], [":21: node3: ansible_host is '192.168.1.101', already that of node2"]),
    "a misspelt variable": ([(SERVERS, f"{SERVERS}\n        cluster_udi: 3000")], [":10: cluster_udi: nothing has"]),
    "no head": ([("        head:\n          hosts:\n            node1:\n", "")], [": group head has 0 hosts"]),
    "three mistakes": (
        [(NODE3, "ansible_host: fd00::3"), (SERVERS, f"{SERVERS}\n        cluster_uid: 0\n        cluster_user: A")],
        [":23: node3: ansible_host is 'fd00::3'", ":10: cluster_uid is '0'", ":11: cluster_user is 'A'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "messages"), REFUSED.values(), ids=REFUSED)
def test_a_bad_inventory_is_refused_and_nobody_is_connected_to(changes, messages, run):
    done = run(changed(*changes))
    assert (done.code, done.hosts, done.tried) == (2, ["localhost"], [])
    for message in messages:
        assert sum(f"{done.file}{message}" in line for line in done.lines if not line.startswith("fatal:")) == 1
    if len(messages) > 1:
        assert any(f"{len(messages)} mistakes, listed above; no node has been contacted" in line for line in done.lines)


def test_train_refuses_it_too(run):
    done = run(changed((NODE3, NODE2)), "-e", "nnodes=2", name="train.yml")
    assert (done.code, done.hosts, done.tried) == (2, ["localhost"], [])


def test_a_good_inventory_goes_on_and_each_node_that_is_off_is_one_line(run):
    """The recorder records: without this the tests above could not fail."""
    done = run(GOOD)
    assert done.code == 2
    for name, address in (("node1", "192.168.1.100"), ("node2", "192.168.1.101"), ("node3", "192.168.1.102")):
        assert sum(address in words for words in done.tried) == 1, "asked once, not again without sudo"
        said = [line for line in done.lines if line.startswith(f"{name} ({address}): ")]
        assert said == [
            f"{name} ({address}): it does not answer: switch it on, check cable and address (ansible_host), "
            f"then try: ssh you@{address}"
        ]
    assert not [line for line in done.lines if "UNREACHABLE" in line]


def test_train_asks_the_planned_nodes_only(run):
    done = run(GOOD, "-e", "nnodes=2 config=training/configs/hello.yaml", name="train.yml")
    assert (done.code, set(done.hosts)) == (2, {"localhost", "node1", "node2"})
    assert not [words for words in done.tried if "192.168.1.102" in words]


def test_a_vault_is_no_plain_text_and_wants_its_password(run, tmp_path):
    password = tmp_path / "password"
    password.write_text("open sesame")
    command = ["ansible-vault", "encrypt_string", "--vault-password-file", password]
    encrypt = subprocess.run([*command, "--name", "ansible_become_password", "hunter2"], capture_output=True, text=True)
    inline = encrypt.stdout.strip().replace("\n", "\n        ")
    text = changed((SERVERS, f"{SERVERS}\n        {inline}"))
    whole = tmp_path / "host_vars/node2.yml"
    whole.parent.mkdir()
    whole.write_text("my_nas_password: hunter2\n")
    plain = run(text, "--vault-password-file", str(password))
    assert (plain.code, plain.tried) == (2, [])
    assert any(f"{whole}:1: node2: my_nas_password is a secret in plain text" in line for line in plain.lines)
    subprocess.run(["ansible-vault", "encrypt", "--vault-password-file", password, whole], check=True)
    locked = run(changed((SERVERS, f"{SERVERS}\n        {inline}")), "--vault-password-file", str(password))
    assert len(locked.tried) >= 3, "nothing is wrong with it: the nodes are asked"
    whole.unlink()
    (tmp_path / "connections").unlink()
    without = run(text)
    assert (without.code, without.tried) == (2, [])
    assert any(
        ":10: ansible_become_password cannot be worked out" in line and "--ask-vault-pass" in line
        for line in without.lines
    )


@pytest.mark.parametrize("text", ["all:\n  children: [\n", "all:\n  children:\n    cluster:\n      hosts: [node1]\n"])
def test_a_file_that_cannot_be_read_is_ansibles_to_refuse(text, run):
    done = run(text)
    assert done.code != 0 and done.tried == []
    assert any("hosts.yml" in line for line in done.lines)
