"""From bare nodes to a cluster that has trained, broken and mended, and given back, in a lab of its own.

The tests of this file build on each other and run in their order. What jobs do is in test_jobs.py.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.fingerprint import differences, take
from tests.labs import Lab, changed, recap

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
LAB = Lab("cluster")
NODES = ["node1", "node2", "node3"]
JOBS = "/srv/minos/jobs"
on, playbook = LAB.inside, LAB.playbook


def checks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return LAB.checks("--numprocesses=4", *arguments)


@pytest.fixture(scope="module", autouse=True)
def nodes():
    LAB.command("down")
    LAB.command("up", "-n", "3")
    yield take(lambda *argv: LAB.command("exec", "node1", *argv).stdout)
    LAB.command("down")


def test_check_mode_works_on_virgin_nodes_and_changes_nothing():
    done = playbook("site.yml", "--check", "--diff")
    assert all(counts["failed"] == 0 for counts in recap(done).values())
    assert changed(done)["node2"] > 10, "it should say what it would change"
    for node in NODES:
        ours = "/opt/minos /etc/minos /usr/sbin/ufw /etc/netplan"
        assert on(node, f"ls -d {ours} 2>/dev/null; getent passwd minos; true") == ""


def test_site_makes_them_a_cluster():
    on(
        "node3",
        "echo '127.0.1.1 oldname.lan oldname' >> /etc/hosts; echo 'Port 2222' > /etc/ssh/sshd_config.d/50-own.conf",
    )
    on("node3", "echo 'Port 22' >> /etc/ssh/sshd_config.d/50-own.conf; systemctl restart ssh")
    on("node3", "mkdir -p /etc/needrestart/conf.d")  # as Ubuntu has it; Debian does not install that program
    done = playbook("site.yml")
    assert on("node3", "grep -c '^127.0.1.1 oldname' /etc/hosts") == "1", "a name that is not ours stays"
    assert on("node3", "ufw status | grep -c ^2222/tcp.*ssh") == "2", "sshd's own port stays open, v4 and v6"
    assert "No NVIDIA GPU in node1, node2, node3" in done.stdout
    assert done.stdout.count("No NVIDIA GPU in") == 1


def test_check_mode_on_provisioned_nodes_shows_no_change():
    """Of the roles that a machine alone does not have; of the others in test_local.py."""
    done = playbook("site.yml", "--check", "--diff", "--tags", "netplan,cluster_hosts,host_tuning,ssh_mesh,firewall")
    assert changed(done) == dict.fromkeys(["localhost", *NODES], 0)
    assert "@@" not in done.stdout


def variables(role: str) -> dict[str, str]:
    return yaml.safe_load((ROOT / "roles" / role / "vars/main.yml").read_text())


def template_task(role: str, name: str) -> dict[str, str]:
    tasks = yaml.safe_load((ROOT / "roles" / role / "tasks/main.yml").read_text())
    return next(each["ansible.builtin.template"] for each in tasks if each["name"] == name)


SHARED = yaml.safe_load((ROOT / "inventory/group_vars/all.yml").read_text())
UNIT = "[Service]\nType=oneshot\nExecStart=/bin/true\n"
# The command that a role validates a file with, a file that it must accept, and one that it must not.
VALIDATED = {
    "netplan": (
        variables("netplan")["__netplan_validate"],
        "network: {version: 2, ethernets: {lan0: {addresses: [10.0.0.30/24]}}}",
        "network: {version: 2, ethernets: {lan0: {addresses: [10.0.0.300/24]}}}",
    ),
    "sshd": (
        template_task("ssh_mesh", "Write the settings of sshd as a candidate")["validate"],
        "PasswordAuthentication no",
        "PasswordAuthentication never",
    ),
    "unattended upgrades": (
        template_task("host_tuning", "Keep unattended upgrades away from kernel and driver")["validate"],
        'Unattended-Upgrade::Package-Blacklist { "nvidia"; };',
        'Unattended-Upgrade::Package-Blacklist { "nvidia"; }; "',
    ),
    "a unit": (SHARED["cluster_unit_validator"], UNIT, UNIT + "Restart=sometimes\n"),
}


@pytest.mark.parametrize(("command", "good", "bad"), VALIDATED.values(), ids=VALIDATED)
def test_what_a_role_validates_can_fail(command, good, bad):
    def accepted(text: str) -> bool:
        on("node3", f"cat > /tmp/candidate <<'END'\n{text}\nEND")
        return (
            LAB.command("exec", "node3", *shlex.split(command.replace("%s", "/tmp/candidate")), check=False).returncode
            == 0
        )

    assert accepted(good)
    assert not accepted(bad)


def test_a_member_left_out_is_refused():
    done = playbook("site.yml", "--limit", "node2", check=False)
    assert done.returncode != 0
    assert "would leave the other members out of step" in done.stdout + done.stderr


def test_what_is_wrong_with_the_nodes_is_listed_together_and_nothing_is_changed():
    address, machine = on("node1", "hostname -I").split()[0], on("node1", "cat /etc/machine-id")
    gateway, own = on("node2", "ip route show default").split()[2], on("node3", "cat /etc/machine-id")
    on("node2", f"ip route add {address}/32 via {gateway}; mv /etc/sudoers.d/lab /root/")
    on("node3", f"chmod u+w /etc/machine-id; echo {machine} > /etc/machine-id")
    try:
        done = playbook("site.yml", check=False)
    finally:
        on("node2", f"ip route del {address}/32; mv /root/lab /etc/sudoers.d/")
        on("node3", f"echo {own} > /etc/machine-id; chmod u-w /etc/machine-id")
    assert done.returncode != 0
    assert changed(done) == dict.fromkeys(["localhost", *NODES], 0)
    said = [line for line in done.stdout.splitlines() if re.match(r"node\d[ :]", line) and "ok=" not in line]
    for finding, name, named in zip(
        said,
        ["node2", "node2", "node3"],
        ["sudo wants a password", f"traffic to node1 ({address}) goes through", "has the machine id of node1"],
        strict=True,
    ):
        assert finding.startswith(name) and named in finding


def test_hello_fits_a_curve_on_all_nodes_and_draws_it():
    playbook("train.yml", "-e", "nnodes=3 config=training/configs/hello.yaml")
    state = json.loads(on("node1", f"cat {JOBS}/hello/state.json"))
    assert (state["state"], state["world_size"]) == ("done", 3)
    assert on("node1", f"head -c 4 {JOBS}/hello/plots/hello.png | tail -c 3") == "PNG"
    assert on("node1", f"ls {JOBS}/hello | grep -c ^packed- || true") == "0", "it has no data to prepare"


def test_the_nodes_are_what_the_roles_promised():
    done = checks()
    assert done.returncode == 0, done.stdout[-6000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 90


UV = "/opt/minos/uv/bin/uv pip uninstall --quiet --python /opt/minos/envs/dist-train/bin/python"
# What is broken on node2, the checks that must name it, and how it is undone where site.yml would only refuse.
BROKEN = {
    "a firewall rule": (
        "ufw delete allow from $(getent ahostsv4 node3 | cut -d' ' -f1 | head -1)",
        "test_firewall_has_a_rule_for_ssh_and_for_every_member",
        "",
    ),
    "the firewall": ("ufw disable", "test_firewall_is_active_and_denies_by_default", ""),
    "a key": (
        "sed -i /node3/d /var/lib/minos/.ssh/authorized_keys",
        "test_ssh_mesh_the_keys_open_from_the_members_only",
        "",
    ),
    "a host key": (
        "sed -i /^node3,/d /etc/ssh/ssh_known_hosts",
        "test_ssh_mesh_logs_in_to_every_member_by_name_and_address",
        "",
    ),
    "password logins": (
        "sed -i s/no$/yes/ /etc/ssh/sshd_config.d/10-minos.conf; systemctl reload ssh",
        "test_ssh_mesh_offers_keys_only",
        "",
    ),
    "the hosts block": (
        "sed -i '/ node3$/d' /etc/hosts",
        "test_cluster_hosts_every_name_resolves_to_the_cluster_address",
        "",
    ),
    "a name on loopback": (
        "sed -i '1i 127.0.1.1 node2' /etc/hosts",
        "test_cluster_hosts_every_name_resolves_to_the_cluster_address"
        " test_ssh_mesh_logs_in_to_every_member_by_name_and_address",
        "sed -i 1d /etc/hosts",
    ),
    "a package": (f"{UV} tqdm", "test_python_env_has_every_package_of_the_lock_and_no_other", ""),
    "the training unit": (
        "sed -i s/^Restart=.*/Restart=sometimes/ /etc/systemd/system/minos-train@.service",
        "test_torchrun_the_units_are_valid",
        "sed -i s/^Restart=.*/Restart=on-failure/ /etc/systemd/system/minos-train@.service",
    ),
    "the address": (
        "sed -i 's/dhcp4: false/dhcp4: true/' /etc/netplan/60-minos.yaml",
        "test_netplan_the_address_is_static",
        "",
    ),
    "a rule of a former member": (
        "ufw allow from 10.9.9.9 comment 'minos: node9'",
        "test_firewall_has_a_rule_for_ssh_and_for_every_member",
        "ufw delete allow from 10.9.9.9",
    ),
    "sleep": ("systemctl unmask sleep.target", "test_host_tuning_never_sleeps", ""),
    "a password": ("usermod -p '' minos", "test_service_user_has_no_password_and_no_sudo", ""),
    "the share": ("mount -t tmpfs none /srv/minos", "test_shared_dir_is_the_heads", "umount /srv/minos"),
    "the store of a former head": (
        "printf '[Service]\\nExecStart=python3 -m http.server 29500\\n[Install]\\nWantedBy=multi-user.target\\n' "
        "> /etc/systemd/system/minos-store.service; systemctl --quiet enable --now minos-store; sleep 1",
        "test_rendezvous_the_store_listens_on_the_head_only",
        "",
    ),
}


CHECKS = sorted({check for _, checks_, _ in BROKEN.values() for check in checks_.split()})
# Each check once in a round: the ones of the first round are undone, and broken again before site.yml repairs all.
ROUNDS = {
    "first": ["a rule of a former member", "a name on loopback"],
    "then": [name for name in BROKEN if name not in ("a rule of a former member", "a name on loopback")],
}


@pytest.mark.parametrize("broken", ROUNDS.values(), ids=ROUNDS)
def test_what_is_broken_is_caught_by_the_checks_that_name_it_and_by_no_others(broken):
    for name in broken:
        on("node2", BROKEN[name][0])
    try:
        done = checks("-k", f"({' or '.join(CHECKS)}) and node2")
        failed = set(re.findall(r"^FAILED \S+::(\w+)\[ansible://node2\]", done.stdout, re.MULTILINE))
        assert failed == {check for name in broken for check in BROKEN[name][1].split()}, done.stdout[-6000:]
    finally:
        for name in broken:
            if BROKEN[name][2]:
                on("node2", BROKEN[name][2])


def test_site_repairs_all_of_it_and_a_second_run_changes_nothing_elsewhere():
    for name in ROUNDS["first"]:
        on("node2", BROKEN[name][0])
    done = playbook("site.yml")
    assert changed(done)["node2"] > 8
    assert [changed(done)[host] for host in ("localhost", "node1", "node3")] == [0, 0, 0]
    repaired = checks("-k", f"({' or '.join(CHECKS)}) and node2")
    assert repaired.returncode == 0, repaired.stdout[-6000:]


def test_what_was_repaired_stays_so_when_the_node_loses_power():
    LAB.command("kill", "node2")
    assert "node2" in LAB.command("status").stdout
    LAB.command("start", "node2")
    done = checks("-k", f"({' or '.join(CHECKS)} or netplan or firewall or ssh_mesh or shared) and node2")
    assert done.returncode == 0, done.stdout[-6000:]


def test_reset_gives_the_head_back_as_it_was(nodes):
    """With its store, its jobs and all data; other machines and other owners are in test_reset.py."""
    playbook("playbooks/reset.yml", "-e", "sure=true remove_data=true remove_data_really=/srv/minos")
    assert differences(nodes, take(lambda *argv: LAB.command("exec", "node1", *argv).stdout)) == []
    assert on("node1", "ls -A /srv/minos") == ""
