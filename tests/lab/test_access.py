"""Who gets in, and who never loses his way in: SSH, both firewalls, host keys, members that leave. In a lab of its own.

The tests build on each other and run in their order. Only the roles that they are about are run.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
LAB = "access"
ENVIRONMENT = {**os.environ, "MINOS_LAB": LAB, "ANSIBLE_NOCOLOR": "1"}
ROLES = "packages,service_user,cluster_hosts,ssh_mesh,firewall"
MEMBERS = "cluster_hosts,ssh_mesh,firewall"  # the roles that know who is one
USERS = {"node1": "rig", "node2": "studio"}
DROP_IN = "/etc/ssh/sshd_config.d/10-minos.conf"


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=400)
    assert not check or done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done


def lab(*arguments: str) -> str:
    return run(sys.executable, "-m", "lab", *arguments).stdout


def on(node: str, command: str) -> str:
    """Run a shell command as root inside a node, without SSH."""
    return run(sys.executable, "-m", "lab", "exec", node, "sh", "-c", command).stdout.strip()


def said(done: subprocess.CompletedProcess[str]) -> str:
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


class Inventory:
    """The lab's inventory as a file to edit; one login user per node."""

    def __init__(self, folder: Path):
        self.file = folder / "hosts.yml"
        (folder / "group_vars").symlink_to(ROOT / "inventory/group_vars")
        listed = json.loads(lab("inventory"))
        self.variables = listed["all"]["vars"]
        self.hosts = listed["_meta"]["hostvars"]
        for name, user in USERS.items():
            self.hosts[name]["ansible_user"] = user
        self.hosts["node2"]["firewall_backend"] = "firewalld"

    def write(self, without: str = "", **variables: str) -> None:
        hosts = {name: {**host, **variables} for name, host in self.hosts.items() if name != without}
        groups = {"head": {"hosts": {"node1": {}}}, "gpu_nodes": {"hosts": hosts}}
        content = {"all": {"vars": self.variables, "children": {"cluster": {"children": groups}}}}
        self.file.write_text(json.dumps(content))

    def site(self, *arguments: str, tags: str = ROLES, check: bool = True, **how) -> subprocess.CompletedProcess[str]:
        self.write(**how)
        return run("ansible-playbook", "-i", str(self.file), "site.yml", "--tags", tags, *arguments, check=check)

    def checks(self, names: str) -> subprocess.CompletedProcess[str]:
        return run(sys.executable, "-m", "pytest", "-q", "tests/nodes", f"--ansible-inventory={self.file}", "-k", names)


@pytest.fixture(scope="module")
def inventory(tmp_path_factory):
    lab("down")
    lab("up", "-n", "2")
    for node, user in USERS.items():
        key = "/home/lab/.ssh/authorized_keys"
        on(node, f"useradd -m -s /bin/bash {user} && install -d -o {user} -g {user} -m 700 /home/{user}/.ssh")
        on(node, f"install -o {user} -g {user} -m 600 {key} /home/{user}/.ssh/authorized_keys")
        on(node, f"echo '{user} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{user}")
    yield Inventory(tmp_path_factory.mktemp("inventory"))
    lab("down")


def test_who_comes_in_by_password_only_is_not_locked_out(inventory, tmp_path):
    password = tmp_path / "password"
    password.write_text("Hae7oo\n")
    as_k = ("--connection-password-file", str(password))  # which has a prompt instead
    on("node2", "usermod -aG sudo lab; mv /home/studio/.ssh/authorized_keys /root/; echo studio:Hae7oo | chpasswd")
    done = inventory.site(*as_k, tags="packages,service_user,ssh_mesh", check=False)
    on("node2", "mv /root/authorized_keys /home/studio/.ssh/")
    assert done.returncode != 0
    assert "node2: you do not get in there by an SSH key alone" in said(done)
    assert "ssh-copy-id studio@" in said(done)
    for node in USERS:
        assert on(node, f"ls {DROP_IN} 2>/dev/null; sshd -T | grep ^passwordauth") == "passwordauthentication yes"


def test_settings_that_keep_us_out_are_taken_back(inventory):
    """Here it is this side that knows nothing but what ours switch off."""
    options = inventory.hosts["node1"]["ansible_ssh_common_args"] + " -o KexAlgorithms=ecdh-sha2-nistp256"
    done = inventory.site(tags="ssh_mesh", ansible_ssh_common_args=options, check=False)
    assert done.returncode != 0
    assert "node1: with our settings sshd there does not let you in any more" in said(done)
    assert "they were taken back" in said(done) and "no matching key exchange method found" in said(done)
    for node in USERS:
        assert (
            on(node, f"ls {DROP_IN} {DROP_IN}.before 2>/dev/null; sshd -T | grep -c '^kexalgorithms.*nistp256'") == "1"
        )


def test_settings_that_sshd_does_not_start_with_are_taken_back(inventory):
    on("node2", "echo Nonsense yes > /etc/ssh/sshd_config.d/90-own.conf")
    done = inventory.site(tags="ssh_mesh", check=False)
    on("node2", "rm /etc/ssh/sshd_config.d/90-own.conf")
    assert "node2: with our settings sshd there does not start any more" in said(done)
    assert "Nonsense" in said(done)
    assert on("node2", f"ls {DROP_IN} 2>/dev/null; true") == ""


def test_the_node_takes_them_back_by_itself(inventory):
    """Nobody says keep: the guard's own timer does it, here sooner than after 90 s."""
    on("node1", f"echo LoginGraceTime 31 > {DROP_IN}.candidate; cp {DROP_IN}.candidate /tmp/candidate")
    before = on("node1", f"cat {DROP_IN} 2>/dev/null; true")
    on("node1", "sed s/on-active=90/on-active=2/ /usr/local/sbin/minos-sshd > /tmp/guard; chmod +x /tmp/guard")
    on("node1", "/tmp/guard try && sshd -T | grep -qx 'logingracetime 31'")
    on("node1", f"for i in $(seq 60); do [ -e {DROP_IN}.trying ] || break; sleep 0.5; done")
    assert on("node1", f"cat {DROP_IN} 2>/dev/null; true") == before
    assert on("node1", f"minos-sshd back; ls {DROP_IN}.[bt]* 2>/dev/null; cat {DROP_IN} 2>/dev/null; true") == before
    assert "logingracetime 31" not in on("node1", "sshd -T")


def test_each_node_has_its_own_login_user_and_firewall(inventory):
    """sshd of node2 listens on another port as well, which firewalld's package would close when it starts."""
    on("node2", "printf 'Port 22\\nPort 2222\\n' > /etc/ssh/sshd_config.d/50-own.conf; systemctl restart ssh")
    inventory.site()
    assert on("node1", "ufw status | head -1") == "Status: active"
    assert on("node2", "systemctl is-active firewalld; command -v ufw || true") == "active"
    assert "2222/tcp" in on("node2", "firewall-cmd --info-policy=minos")
    inventory.checks("firewall or ssh_mesh")
    again = inventory.site(tags="ssh_mesh,firewall")
    assert re.findall(r"changed=(\d+)", again.stdout) == ["0", "0", "0"]


ZONES = '<ingress-zone name="ANY"/><egress-zone name="HOST"/>'
BAD_POLICIES = {
    "no XML": "<",
    "unknown target": f'<policy target="NONSENSE">{ZONES}</policy>',
    "unknown rule": f'<policy target="CONTINUE">{ZONES}<rool family="ipv4"><accept/></rool></policy>',
}


@pytest.mark.parametrize("bad", BAD_POLICIES.values(), ids=BAD_POLICIES)
def test_a_policy_that_firewalld_would_not_take_is_refused(bad, inventory):
    command = yaml.safe_load((ROOT / "roles/firewall/vars/main.yml").read_text())["__firewall_validate"]
    check = " ".join(command.split()).replace("%s", "/tmp/minos.xml")
    on("node2", f"cp /etc/firewalld/policies/minos.xml /tmp/ && {check}")
    assert on("node2", f"echo '{bad}' > /tmp/minos.xml; {check} >/dev/null 2>&1 || echo refused") == "refused"


def test_the_owners_rules_are_kept(inventory):
    on("node1", "ufw allow 8080/tcp comment web")
    on("node2", "firewall-cmd --permanent --zone=public --add-port=8080/tcp && firewall-cmd --reload")
    lan = str(ipaddress.ip_network(inventory.variables["cluster_gateway"] + "/24", strict=False))
    inventory.site("-e", json.dumps({"firewall_ssh_from": [lan]}), tags="firewall")
    assert "8080/tcp" in on("node1", "ufw status") and "8080/tcp" in on("node2", "firewall-cmd --info-zone=public")
    assert "22/tcp                     ALLOW       Anywhere" not in on("node1", "ufw status")


def test_a_rule_that_would_cut_the_session_off_is_refused(inventory):
    before = [on("node1", "ufw status"), on("node2", "firewall-cmd --info-policy=minos")]
    done = inventory.site("-e", json.dumps({"firewall_ssh_from": ["198.51.100.0/24"]}), tags="firewall", check=False)
    assert done.returncode != 0
    assert re.search(r"node1: you are logged in from \S+, which firewall_ssh_from \(198.51.100.0/24\)", said(done))
    assert before == [on("node1", "ufw status"), on("node2", "firewall-cmd --info-policy=minos")]


def test_two_firewalls_at_once_are_refused(inventory):
    done = inventory.site("-e", "firewall_backend=ufw", tags="firewall", check=False)
    assert "node2: firewalld is active there, but ufw should keep the rules" in said(done)


def test_a_member_that_leaves_is_forgotten(inventory):
    address = inventory.hosts["node2"]["cluster_ip"]
    traces = f"ufw status; cat /etc/hosts /etc/ssh/ssh_known_hosts /var/lib/minos/.ssh/authorized_keys | grep {address}"
    assert address in on("node1", f"{traces}; true")
    inventory.site(tags=MEMBERS, without="node2")
    left = on("node1", f"{traces}; grep -rl node2 /etc/hosts /etc/ssh /var/lib/minos/.ssh; true")
    assert address not in left and "node2" not in left
    assert "web" in left, "the owner's rule is still there"


def test_a_member_that_joins_is_known_and_nothing_else_changes(inventory):
    """On the machine that was there already."""
    address = inventory.hosts["node2"]["cluster_ip"]
    keys = "/var/lib/minos/.ssh/authorized_keys"
    everything = f"cat /etc/hosts /etc/ssh/ssh_known_hosts {keys} {DROP_IN}; ufw status"
    before = on("node1", everything).splitlines()
    done = inventory.site(tags=MEMBERS)
    assert on("node1", f"grep -cx '{address} node2' /etc/hosts") == "1"
    assert on("node1", f"grep -c '^node2,{address} ssh-ed25519 ' /etc/ssh/ssh_known_hosts") == "1"
    assert on("node1", f"grep -c '{address}.* ssh-ed25519 .* minos@node2$' {keys}") == "1"
    assert on("node1", f"ufw status | grep -c '{address} .*# minos: node2$'") == "1"
    # Each key opens from the members, so that its line names the new one, too.
    now = [line.replace(f',{address}"', '"') for line in on("node1", everything).splitlines()]
    assert [line for line in now if address not in line and "node2" not in line] == before
    changed = [task for task in re.split(r"\n(?=TASK|RUNNING HANDLER)", done.stdout) if "changed: [node1]" in task]
    assert {re.match(r"[A-Z ]+\[(\S+) : ", task)[1] for task in changed} == {"cluster_hosts", "ssh_mesh", "firewall"}
    inventory.checks("firewall or ssh_mesh")


def ask(inventory: Inventory, answer: str) -> str:
    """Run trust.yml at a terminal, where somebody answers once he is asked."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execvpe(
            "ansible-playbook", ["ansible-playbook", "-i", str(inventory.file), "playbooks/trust.yml"], ENVIRONMENT
        )
    text, asked = "", False
    with contextlib.suppress(OSError):  # how a terminal ends
        while data := os.read(terminal, 65536):
            text += data.decode(errors="replace")
            if "Type yes" in text and not asked:
                asked = True
                time.sleep(1)  # what is typed before the question is thrown away
                os.write(terminal, f"{answer}\r".encode())
    os.close(terminal)
    os.waitpid(child, 0)
    return re.sub(r"\s+", " ", text)


def test_a_machine_behind_another_that_is_only_being_met(inventory, tmp_path):
    """Neither is known: the way to node2 leads through node1, whose key ssh asks for there, too."""
    file, config, node1 = tmp_path / "known_hosts", tmp_path / "ssh_config", inventory.hosts["node1"]
    (way,) = (word for word in shlex.split(node1["ansible_ssh_common_args"]) if word.startswith("ProxyCommand="))
    config.write_text(
        f"Host {node1['ansible_host']}\n  User rig\n  ProxyCommand {way.removeprefix('ProxyCommand=')}\n"
        f"Host {inventory.hosts['node2']['ansible_host']}\n  ProxyJump {node1['ansible_host']}\n"
        f"Host *\n  UserKnownHostsFile {file}\n  GlobalKnownHostsFile /dev/null\n"
        f"  IdentityFile {node1['ansible_ssh_private_key_file']}\n  IdentitiesOnly yes\n"
    )
    inventory.write(ansible_ssh_common_args=f"-F {config}")
    done = run("ansible-playbook", "-i", str(inventory.file), "playbooks/trust.yml", "-e", "trust_answer=yes")
    assert "Known: node1, node2" in said(done)
    assert len(file.read_text().splitlines()) == 2
    run("ansible", "cluster", "-i", str(inventory.file), "-m", "ping")


def test_host_keys_are_shown_asked_for_once_and_kept(inventory, tmp_path):
    file = tmp_path / "known_hosts"
    options = inventory.hosts["node1"]["ansible_ssh_common_args"]
    known = re.search(r"UserKnownHostsFile=(\S+)", options)[1]
    own = {"ansible_ssh_common_args": options.replace(known, str(file))}
    inventory.write(**own)
    fingerprint = on("node2", "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").split()[1]
    assert f"ED25519 {fingerprint}" in ask(inventory, "no") and not file.exists()
    assert "Known: node1, node2" in ask(inventory, "yes")
    assert "Type yes" not in ask(inventory, "no"), "asked for a second time"
    run("ansible", "cluster", "-i", str(inventory.file), "-m", "ping")

    lines = file.read_text().splitlines()
    other = re.sub(r"\S+$", lines[0].split()[-1], lines[1])
    file.write_text("\n".join([lines[0], other]) + "\n")
    changed = ask(inventory, "yes")
    assert f"this is not the machine that {file} knows (line 2)" in changed
    assert f"ssh-keygen -R '{lines[1].split()[0]}' -f {file}" in changed
    anew = ["-e", "ansible_ssh_args='-o ControlPath=none'"]
    # A module is written to ssh's standard input, and ssh may be gone before: then Ansible says "Broken pipe" instead.
    refused = run("ansible", "cluster", "-i", str(inventory.file), "-m", "raw", "-a", "true", *anew, check=False)
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in said(refused) and str(file) in said(refused)
