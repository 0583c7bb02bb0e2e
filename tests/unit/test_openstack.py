"""inventory/openstack with Ansible's own plugin and the real library, against a cloud of the test's own on loopback."""

from __future__ import annotations

import json
import os
import subprocess
from types import SimpleNamespace

import pytest
import yaml
from openstack_cloud import running, server
from paths import ROOT

# A head that is seen from outside, and one that only those beside it see.
OPEN = server("rig-1", fixed="10.0.0.5", floating="203.0.113.5", minos="head,gpu")
CLOSED = server("rig-1", fixed="10.0.0.5", minos="head")
SECOND = server("rig-2", fixed="10.0.0.6", minos="gpu")
KEYS = ("ssh", "cluster_ip", "options", "static", "head_ip", "groups")
STRANGER = server("wiki", fixed="10.0.0.9", floating="203.0.113.9")


@pytest.fixture
def ask(tmp_path):
    """Run a command with the credentials of an openrc.sh, or of a clouds.yaml, for a cloud with these servers."""

    def run(servers, *command, password="right", url="", by_file=False):
        with running(servers) as here:
            url = url or here
            account = {"username": "ada", "password": password, "project_name": "demo"}
            account |= {"user_domain_name": "Default", "project_domain_name": "Default", "auth_url": url}
            kept = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
            if by_file:
                file = tmp_path / "clouds.yaml"
                file.write_text(yaml.safe_dump({"clouds": {"mine": {"auth": account, "region_name": "one"}}}))
                kept["OS_CLIENT_CONFIG_FILE"] = str(file)
            else:
                kept |= {f"OS_{name.upper()}": value for name, value in account.items()} | {"OS_REGION_NAME": "one"}
            kept |= {"ANSIBLE_NOCOLOR": "1", "COLUMNS": "400", "HOME": str(tmp_path)}
            return subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=100)

    return run


@pytest.fixture
def listed(ask):
    """What the roles get of each member's variables."""

    def hosts(servers, **more):
        fields = "inventory_hostname, ansible_host, cluster_ip, ansible_ssh_common_args, static_ip, cluster_head_ip"
        command = ["ansible", "-i", "inventory/openstack", "cluster", "-m", "ansible.builtin.debug", "-o"]
        done = ask(servers, *command, "-c", "local", "-a", f"msg={{{{ [{fields}, group_names] | to_json }}}}", **more)
        assert done.returncode == 0, done.stdout + done.stderr
        answers = [json.loads(line.partition(" => ")[2])["msg"] for line in done.stdout.splitlines() if " => " in line]
        found = sorted(answer if isinstance(answer, list) else json.loads(answer) for answer in answers)
        return {name: SimpleNamespace(**dict(zip(KEYS, rest, strict=True))) for name, *rest in found}

    return hosts


def test_all_have_an_address_outside(listed):
    second = server("rig-2", fixed="10.0.0.6", floating="203.0.113.6", minos="gpu")
    hosts = listed([OPEN, second, STRANGER])
    assert list(hosts) == ["rig-1", "rig-2"], "the stranger is no member"
    assert hosts["rig-1"].groups == ["cluster", "gpu_nodes", "head", "nfs_server"]
    assert hosts["rig-2"].groups == ["cluster", "gpu_nodes"]
    assert [host.ssh for host in hosts.values()] == ["203.0.113.5", "203.0.113.6"]
    assert [host.cluster_ip for host in hosts.values()] == ["10.0.0.5", "10.0.0.6"]
    assert {(host.options, host.static, host.head_ip) for host in hosts.values()} == {("", False, "10.0.0.5")}


def test_the_others_are_reached_through_the_head(listed):
    hosts = listed([OPEN, SECOND], by_file=True)
    assert (hosts["rig-1"].ssh, hosts["rig-1"].options) == ("203.0.113.5", "")
    assert (hosts["rig-2"].ssh, hosts["rig-2"].options) == (
        "10.0.0.6",
        '-o ProxyCommand="ssh -W %h:%p ubuntu@203.0.113.5"',
    )


def test_from_inside_the_cloud_nobody_needs_an_address_outside(listed):
    hosts = listed([CLOSED, SECOND])
    assert [host.groups for host in hosts.values()] == [["cluster", "head", "nfs_server"], ["cluster", "gpu_nodes"]]
    assert [(host.ssh, host.options) for host in hosts.values()] == [("10.0.0.5", ""), ("10.0.0.6", "")]


REFUSED = {
    "a wrong password": ({"password": "wrong"}, r"requires authentication. (HTTP 401): source your openrc.sh again"),
    "no cloud there": ({"url": "http://127.0.0.1:9/v3"}, "Unable to establish connection to http://127.0.0.1:9/v3"),
    "no member": ({"servers": [STRANGER]}, "none of its servers (wiki) is head or gpu"),
}


@pytest.mark.parametrize(("how", "message"), REFUSED.values(), ids=REFUSED)
def test_what_keeps_the_cloud_from_answering_is_one_line(how, message, ask):
    more = {"servers": [OPEN, SECOND]} | how
    done = ask(more.pop("servers"), "ansible-playbook", "-i", "inventory/openstack", "site.yml", **more)
    assert done.returncode != 0
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("[ERROR]")]
    assert len(errors) == 1
    assert "openstack: " in errors[0] and message in errors[0]
    assert "Failed to parse" not in done.stderr
    assert "Pool" not in errors[0]


def test_the_inventory_is_a_good_one_and_its_rules_are_shown(ask):
    done = ask([OPEN, SECOND], "ansible-playbook", "-i", "inventory/openstack", "playbooks/cloud_rules.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "security group rule create --ingress --protocol tcp --dst-port 22 --remote-ip 0.0.0.0/0 minos" in done.stdout
    )
    assert "--remote-group minos --protocol any minos" in done.stdout
    assert "for server in rig-1 rig-2; do" in done.stdout


def test_public_addresses_between_members_are_refused_until_accepted(ask):
    servers = [server("rig-1", fixed="8.8.8.8", minos="head,gpu"), server("rig-2", fixed="8.8.4.4", minos="gpu")]
    command = ["ansible-playbook", "-i", "inventory/openstack", "playbooks/preflight.yml"]
    refused = ask(servers, *command)
    assert refused.returncode != 0
    assert "cluster_ip is a public address (rig-1, rig-2), and what the nodes say" in refused.stdout
    accepted = ask(servers, *command, "-e", "cluster_over_internet=true")
    assert accepted.returncode == 0
    assert "talk over public addresses, unencrypted" in accepted.stderr
