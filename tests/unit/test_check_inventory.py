"""Bad inventories: each is refused with one line that says where, what and the fix; good ones pass."""

from __future__ import annotations

import json

import pytest
from inventories import GOOD, changed, found, write
from inventory_rules import spelling
from inventory_rules.options import known_names, prefixes, role_options
from paths import ROOT

from lab import inventory as lab_inventory
from lab.config import Paths
from lab.hostsettings import HostSettings
from lab.state import LabState
from training.settings import Config

NODE2, NODE3 = "ansible_host: 192.168.1.101", "ansible_host: 192.168.1.102"
GATEWAY, SERVERS = "cluster_gateway: 192.168.1.1\n", "cluster_nameservers: [192.168.1.1]"
SERVER = "        nfs_server:\n          hosts:\n            node1:\n"
HEAD = "        head:\n          hosts:\n            node1:\n"


def shared(line):
    """Add a line to the variables of the whole cluster."""
    return [(SERVERS, f"{SERVERS}\n        {line}")]


def own(line):
    """Add a line to those of node2."""
    return [(NODE2, f"{NODE2}\n              {line}")]


# What somebody wrote, the line it is in (none: no line is to blame), what the message names, and the fix in it.
BAD = {
    # groups
    "nobody in the cluster": ([("    cluster:\n", "    clutser:\n")], None, "group cluster", "inventory/hosts.yml"),
    "no head": ([(HEAD, "")], None, "group head has 0 hosts", "name exactly one machine"),
    "two heads": ([(HEAD, HEAD + "            node2:\n")], None, "head has 2 hosts (node1, node2)", "exactly one"),
    "gpu_nodes misspelt": ([("gpu_nodes:", "gpu_node:")], None, "gpu_nodes is missing", "call it gpu_nodes"),
    "head outside the cluster": (
        [
            (HEAD, ""),
            ("    cluster:", "    head:\n      hosts:\n        node9: {ansible_host: 192.168.1.9}\n    cluster:"),
        ],
        5,
        "node9: is not in group cluster",
        "make head and gpu_nodes children of cluster",
    ),
    "two NFS servers": (
        [(HEAD, HEAD + SERVER + "            node2:\n")],
        None,
        "group nfs_server has 2 hosts (node1, node2)",
        "name one machine there, or none",
    ),
    "an NFS server and a NAS": (
        [*shared("cluster_nfs_source: 192.168.1.5:/volume1/minos"), (HEAD, HEAD + SERVER)],
        10,
        "node1 is in group nfs_server and exports the shared directory itself",
        "take one of them out",
    ),
    # names
    "a name with an underscore": ([("node2:", "gpu_box:")], 18, "gpu_box: is no host name", "such as gpu-box"),
    "a name with a space": ([("node2:", "my node:")], 18, "my node: is no host name", "such as my-node"),
    "an address as a name": (
        [(f"node2:\n              {NODE2}", "192.168.1.101:")],
        18,
        "192.168.1.101: is no host name",
        "'ansible_host: 192.168.1.101'",
    ),
    "a name too long": ([("node2:", f"{'n' * 64}:")], 18, "is no host name", "at most 63"),
    "localhost": ([("node2:", "localhost:")], 18, "localhost: is every machine's name", "another one, such as node1"),
    "names that differ by capitals": ([("node2:", "Node1:")], 18, "same host name as node1", "rename one"),
    "a machine called as a group": ([("node2:", "gpu_nodes:")], 18, "gpu_nodes: is no host name", "gpu-nodes"),
    "a machine called head": ([("node2:", "head:")], 18, "head: is also the name of a group", "rename the machine"),
    "root as service user": (shared("cluster_user: root"), 10, "cluster_user is 'root'", "such as minos"),
    "an impossible service user": (shared("cluster_user: Ada L"), 10, "cluster_user is 'Ada L'", "small letters"),
    "the login as service user": (shared("cluster_user: you"), 10, "cluster_user is 'you'", "of its own"),
    "a login with its address": (
        own("ansible_user: rig@192.168.1.101"),
        20,
        "ansible_user is 'rig@192.168.1.101'",
        "write only rig",
    ),
    "a login with a space": (own("ansible_user: rig one"), 20, "node2: ansible_user is 'rig one'", "without spaces"),
    # addresses
    "mistyped": ([(NODE2, "ansible_host: 192.168.1.1O1")], 19, "ansible_host is '192.168.1.1O1'", "such as 192"),
    "a number too large": ([(NODE2, "ansible_host: 192.168.1.256")], 19, "'192.168.1.256'", "such as 192.168.1.100"),
    "a name for an address": ([(NODE2, "ansible_host: node2.local")], 19, "'node2.local'", "getent ahostsv4"),
    "IPv6": ([(NODE2, "ansible_host: 'fd00::2'")], 19, "ansible_host is 'fd00::2'", "IPv6 does not work here"),
    "leading zeros": ([(NODE2, "ansible_host: 192.168.001.101")], 19, "ansible_host", "write 192.168.1.101"),
    "with its netmask": ([(NODE2, "ansible_host: 192.168.1.101/24")], 19, "ansible_host", "write 192.168.1.101;"),
    "spaces around it": ([(NODE2, "ansible_host: ' 192.168.1.101'")], 19, "ansible_host", "without the spaces"),
    "with its user": ([(NODE2, "ansible_host: rig@192.168.1.101")], 19, "ansible_host", "'ansible_user: rig'"),
    "with its port": ([(NODE2, "ansible_host: 192.168.1.101:2222")], 19, "ansible_host", "'ansible_port: 2222'"),
    "twice": ([(NODE3, NODE2)], 21, "node3: ansible_host is '192.168.1.101', already that of node2", "of its own"),
    "outside": ([(NODE3, "ansible_host: 192.168.2.102")], 21, "ansible_host is '192.168.2.102'", "correct the address"),
    "the subnet's": ([(NODE3, "ansible_host: 192.168.1.0")], 21, "address of the whole subnet", "the machine's own"),
    "broadcast": ([(NODE3, "ansible_host: 192.168.1.255")], 21, "broadcast address", "the machine's own"),
    "the router's": ([(NODE3, "ansible_host: 192.168.1.1")], 21, "the router's", "the machine's own"),
    "loopback": (
        [(NODE3, "ansible_host: 127.0.0.1"), (GATEWAY, "cluster_gateway: ''\n")],
        21,
        "ansible_host is '127.0.0.1'",
        "by which the other nodes reach it",
    ),
    "none": ([(f":\n              {NODE3}", ":")], 20, "node3: has no address", "write 'ansible_host:"),
    "an empty one": ([(NODE3, "ansible_host:")], 21, "ansible_host has no value", "take the line out"),
    "one that refers to nothing": (
        [(NODE3, "ansible_host: '{{ rack_net }}.7'")],
        21,
        "ansible_host cannot be worked out ('rack_net' is undefined)",
        "correct what it refers to",
    ),
    "alone with others": (shared("local_only: true"), 10, "local_only is for one machine alone", "has 3"),
    "public addresses": (
        [("192.168.1.1\n", "8.8.8.1\n"), *((f"192.168.1.10{n}", f"8.8.8.10{n}") for n in range(3))],
        17, "ansible_host is a public address (node1, node2, node3)", "as cluster_ip",
    ),
    "a bad cluster_ip": (own("cluster_ip: 10.0.0"), 20, "node2: cluster_ip is '10.0.0'", "write an IPv4 address"),
    "a way in with a slash": (
        [(NODE2, "ansible_host: rig/2\n              cluster_ip: 192.168.1.101")],
        19,
        "node2: ansible_host is 'rig/2'",
        "a name that SSH can reach",
    ),
    "one way in to two machines": (
        [
            (NODE2, "ansible_host: hop.example\n              cluster_ip: 192.168.1.101"),
            (NODE3, "ansible_host: hop.example\n              cluster_ip: 192.168.1.102"),
        ],
        22,
        "node3: ansible_host is 'hop.example', the way to node2",
        "ansible_port",
    ),
    "gateway": ([(GATEWAY, "cluster_gateway: 192.168.1\n")], 7, "cluster_gateway is '192.168.1'", "or '' for none"),
    "gateway of another subnet": (
        [(GATEWAY, "cluster_gateway: 192.168.1.255\n")],
        7,
        "cluster_gateway is '192.168.1.255', which is the broadcast address",
        "the router's own address",
    ),
    "empty gateway": ([(GATEWAY, "cluster_gateway:\n")], 7, "cluster_gateway has no value", "'' for an empty one"),
    "netmask": (
        [("cluster_prefix: 24", "cluster_prefix: 255.255.255.0")],
        8,
        "cluster_prefix is '255.255.255.0'",
        "255.255.255.0 is 24",
    ),
    "prefix": ([("cluster_prefix: 24", "cluster_prefix: 31")], 8, "cluster_prefix is '31'", "8 to 30"),
    "name server": ([(SERVERS, "cluster_nameservers: [1.1.1]")], 9, "cluster_nameservers holds '1.1.1'", "such as 192"),
    "name servers": ([(SERVERS, "cluster_nameservers: 1.1.1.1")], 9, "cluster_nameservers is '1.1.1.1'", "a list"),
    "an MTU in words": (shared("cluster_mtu: jumbo"), 10, "cluster_mtu is 'jumbo'", "from 576 to 65535, or 0"),
    "an MTU too small": (own("cluster_mtu: 500"), 20, "node2: cluster_mtu is '500'", "from 576 to 65535, or 0"),
    "one route": (
        shared("cluster_routes: {to: 10.1.0.0/16, via: 192.168.1.2}"),
        10,
        "cluster_routes is '{",
        "write a list, such as [{to: 10.1.0.0/16, via: 192.168.1.2}], or [] for none",
    ),
    "a route as text": (shared("cluster_routes: [10.1.0.0/16]"), 10, "cluster_routes holds '10.1.0.0/16'", "{to: 10"),
    "a route with more": (
        shared("cluster_routes: [{to: 10.1.0.0/16, via: 192.168.1.2, metric: 9}]"),
        10,
        "cluster_routes holds '{",
        "to and via, and nothing else",
    ),
    "a route to no network": (
        shared("cluster_routes: [{to: studio, via: 192.168.1.2}]"),
        10,
        "cluster_routes has a route to 'studio'",
        "such as 10.1.0.0/16",
    ),
    "a route to a host's address": (
        shared("cluster_routes: [{to: 10.1.2.3/16, via: 192.168.1.2}]"),
        10,
        "cluster_routes has a route to '10.1.2.3/16'",
        "write 10.1.0.0/16",
    ),
    "a default route": (
        shared("cluster_routes: [{to: default, via: 192.168.1.2}]"),
        10,
        "cluster_routes has a route to 'default'",
        "cluster_gateway",
    ),
    "a route through a name": (
        shared("cluster_routes: [{to: 10.1.0.0/16, via: router}]"),
        10,
        "the route to 10.1.0.0/16 goes through 'router'",
        "such as 192.168.1.2",
    ),
    "a route through another subnet": (
        own("cluster_routes: [{to: 10.1.0.0/16, via: 192.168.2.2}]"),
        20,
        "node2: cluster_routes: the route to 10.1.0.0/16 goes through '192.168.2.2', outside 192.168.1.0/24",
        "a machine in the cluster's subnet",
    ),
    "a route through nobody, without a gateway": (
        [(GATEWAY, "cluster_gateway: ''\n"), *own("cluster_routes: [{to: 10.1.0.0/16, via: 192.168.2.2}]")],
        20,
        "goes through '192.168.2.2', outside 192.168.1.0/24",
        "a machine in the cluster's subnet",
    ),
    # paths
    "relative share": (shared("cluster_shared_path: srv/minos"), 10, "cluster_shared_path is 'srv/minos'", "absolute"),
    "root share": (shared("cluster_shared_path: /"), 10, "cluster_shared_path is '/'", "such as /srv/minos"),
    "share in a home": (shared("cluster_shared_path: /home/you/minos"), 10, "cluster_shared_path", "elsewhere"),
    "share of the system": (shared("cluster_shared_path: /etc/minos"), 10, "cluster_shared_path", "elsewhere"),
    "share with a space": (shared("cluster_shared_path: /srv/my share"), 10, "cluster_shared_path", "of letters"),
    "share is the state": (
        shared("cluster_shared_path: /var/lib/minos"),
        10,
        "cluster_shared_path is '/var/lib/minos'",
        "write another path, such as /srv/minos",
    ),
    "state in the share": (shared("cluster_state_path: /srv/minos/state"), 10, "cluster_state_path", "another path"),
    "state everywhere": (shared("cluster_state_path: /var/lib"), 10, "cluster_state_path is '/var/lib'", "of its own"),
    "environment in /tmp": (shared("cluster_env_path: /tmp/env"), 10, "cluster_env_path", "such as /opt/minos/envs"),
    # values
    "system uid": (shared("cluster_uid: 33"), 10, "cluster_uid is '33'", "1000 to 60000"),
    "gid in words": (shared("cluster_gid: minos"), 10, "cluster_gid is 'minos'", "1000 to 60000"),
    "uids that differ": (own("cluster_uid: 3000"), 20, "'2600' on node1, '3000' on node2", "once for all"),
    "port": (shared("rendezvous_port: 80"), 10, "rendezvous_port is '80'", "1024 to 65535"),
    "sshd's port": (
        shared("{rendezvous_port: 2222, ansible_port: 2222}".strip("{}").replace(", ", "\n        ")),
        10,
        "rendezvous_port is '2222', sshd's port",
        "such as 29500",
    ),
    "login port": (own("ansible_port: ssh"), 20, "node2: ansible_port is 'ssh'", "usually 22"),
    "processes": (own("nproc_per_node: two"), 20, "node2: nproc_per_node is 'two'", "1 or more"),
    "processes, yes": (own("nproc_per_node: yes"), 20, "node2: nproc_per_node is 'True'", "1 or more"),
    "threads": (shared("omp_num_threads: -1"), 10, "omp_num_threads is '-1'", "1 or more"),
    "loopback interface": (own("lan_interface: lo"), 20, "node2: lan_interface is 'lo'", "ip link"),
    "two interfaces": (own("lan_interface: eth0 eth1"), 20, "lan_interface is 'eth0 eth1'", "one interface"),
    "neither true nor false": (own("static_ip: maybe"), 20, "node2: static_ip is 'maybe'", "write true or false"),
    "empty, neither": (own("static_ip:"), 20, "node2: static_ip has no value", "take the line out"),
    "a NAS without a colon": (
        shared("cluster_nfs_source: 192.168.1.5/volume1"), 10, "cluster_nfs_source is '192", "such as 192.168.1.5:/"),
    "two NAS": (
        own("cluster_nfs_source: nas:/a"), 20, "cluster_nfs_source is '' on node1, 'nas:/a' on node2", "once for all"),
    "proxy": (shared("cluster_proxy_env: {http_proxy: '10.0.0.1:3128'}"), 10, "http_proxy", "http://10.0.0.1:3128"),
    "proxy as text": (shared("cluster_proxy_env: http://10.0.0.1:3128"), 10, "cluster_proxy_env", "{http_proxy:"),
    "proxy of nothing": (shared("cluster_proxy_env: {proxy: 'http://a:1'}"), 10, "holds 'proxy'", "http_proxy"),
    "an option of a role": (shared("python_env_variant: gpu"), 10, "variant is 'gpu'", "of cpu, cuda, unsloth"),
    "a number of a role": (shared("netplan_rollback_seconds: long"), 10, "netplan_rollback_seconds", "a whole number"),
    "a list of a role": (shared("firewall_ssh_from: any"), 10, "firewall_ssh_from is 'any'", "write a list"),
    # what the head serves
    "TensorBoard for everybody": (
        shared("tensorboard_address: 0.0.0.0"),
        10,
        "tensorboard_address is '0.0.0.0'",
        "the head's own address on the cluster network (192.168.1.100), or 127.0.0.1",
    ),
    "a port of the system": (shared("tensorboard_port: 80"), 10, "tensorboard_port is '80'", "such as 6006"),
    "the store's port": (shared("tensorboard_port: 29500"), 10, "tensorboard_port is '29500'", "a free one"),
    "no network": (
        shared("tensorboard_address: 192.168.1.100\n        tensorboard_from: [studio]"),
        11,
        "tensorboard_from holds 'studio'",
        "such as 192.168.1.0/24",
    ),
    "everywhere": (shared("firewall_ssh_from: [0.0.0.0/0]"), 10, "firewall_ssh_from holds '0.0.0.0/0'", "write any"),
    "a netmask": (
        shared("firewall_ssh_from: [10.0.0.0/255.0.0.0]"), 10, "holds '10.0.0.0/255.0.0.0'", "write 10.0.0.0/8"),
    "a machine in a network": (
        shared("firewall_ssh_from: [192.168.1.7/24]"), 10, "holds '192.168.1.7/24'", "write 192.168.1.0/24"),
    "long IPv6": (
        own("firewall_ssh_from: [any, 2001:DB8::0/32]"), 20, "node2: firewall_ssh_from", "write 2001:db8::/32"),
    "visitors of loopback": (
        shared("tensorboard_from: [192.168.7.0/24]"),
        10,
        "tensorboard_from lets others in, and tensorboard_address is 127.0.0.1",
        "write the head's own address there (192.168.1.100)",
    ),
    # names of variables
    "misspelt": (shared("cluster_shraed_path: /srv/x"), 10, "cluster_shraed_path", "did you mean cluster_shared_path?"),
    "hyphens": (own("nproc-per-node: 2"), 20, "nproc-per-node", "did you mean nproc_per_node?"),
    "misspelt address": (
        own("cluster-ip: 10.0.0.1"),
        20,
        "node2: cluster-ip: nothing has this name",
        "did you mean cluster_ip?",
    ),
    "a role's that does not exist": (shared("netplan_mtu_size: 9000"), 10, "netplan_mtu_size", "inventory/group_vars"),
    # secrets
    "login password": (own("ansible_password: hunter2"), 20, "ansible_password is a secret", "-k asks"),
    "sudo password": (own("ansible_become_pass: hunter2"), 20, "ansible_become_pass is a secret", "let -K ask"),
    "token": (shared("huggingface_token: hf_hunter2"), 10, "huggingface_token is a secret", "set HF_TOKEN"),
    "another secret": (shared("my_nas_password: hunter2"), 10, "my_nas_password is a secret", "ansible-vault"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "line", "named", "fix"), BAD.values(), ids=BAD)
def test_one_line_for_one_mistake(changes, line, named, fix, tmp_path):
    file = write(tmp_path, changed(*changes))
    wrong = found(file)
    assert len(wrong) == 1, wrong
    assert wrong[0].startswith(f"{file}:{line}: " if line else f"{file}: ")
    assert named in wrong[0] and fix in wrong[0] and "\n" not in wrong[0]
    assert "hunter2" not in wrong[0], "a secret is named, never shown"


def test_the_table_is_long_enough():
    assert len(BAD) >= 40


def test_three_mistakes_give_three_lines(tmp_path):
    changes = [(NODE2, "ansible_host: x"), *shared("rendezvous_port: 0"), (GATEWAY, "cluster_gateway: router\n")]
    assert len(found(write(tmp_path, changed(*changes)))) == 3


def test_the_inventory_that_ships(tmp_path):
    text = (ROOT / "inventory/hosts.yml").read_text()
    assert "set minos_inventory_ready: true" in found(write(tmp_path, text))[0]
    assert found(write(tmp_path, text.replace("_ready: false", "_ready: true"))) == []


def test_an_inventory_without_the_shared_variables(tmp_path):
    (tmp_path / "mine.yml").write_text(GOOD)
    assert "shared variables were not loaded" in found(tmp_path / "mine.yml")[0]


PLAIN = """\
[head]
node1

[gpu_nodes]
node1 ansible_host=10.0.0.1
node2 ansible_host=10.0.0.2 nproc_per_node=2

[cluster:children]
head
gpu_nodes

[cluster:vars]
minos_inventory_ready=true
cluster_gateway=10.0.0.254
"""
NOT_OURS = "rack: 3\n        power_plan: night\n        backup_path: /nas/node2\n        ansible_ssh_port: 22"
FINE = {
    "as it is": [],
    "public addresses": [(NODE2, "ansible_host: rig.example.org\n              cluster_ip: 192.168.1.101")],
    "two ports of one router": [
        (NODE2, "ansible_host: 203.0.113.5\n              cluster_ip: 192.168.1.101\n              ansible_port: 2201"),
        (NODE3, "ansible_host: 203.0.113.5\n              cluster_ip: 192.168.1.102\n              ansible_port: 2202"),
    ],
    "no gateway": [(GATEWAY, "cluster_gateway: ''\n")],
    "a switch as text": own("static_ip: 'false'"),
    "a NAS": shared("cluster_nfs_source: nas.lan:/volume1/minos"),
    "a NAS with an IPv6 address": shared("cluster_nfs_source: '[fd00::5]:/volume1/minos'"),
    "jumbo frames": shared("cluster_mtu: 9000"),
    "a route": shared("cluster_routes: [{to: 10.1.0.0/16, via: 192.168.1.2}]"),
    "a route to a machine": shared("cluster_routes: [{to: 10.1.0.7, via: 192.168.1.2}]"),
    "variables of the owner's": shared(NOT_OURS),
    "proxies": shared("cluster_proxy_env: {http_proxy: 'http://u:p@10.0.0.1:3128', no_proxy: 'localhost,.lan'}"),
    "a secret that is only referred to": shared("ansible_become_password: \"{{ lookup('env', 'SUDO') }}\""),
    "a share in /home": shared("cluster_shared_path: /home/shared"),
    "a uid of a directory service": shared("cluster_uid: 1900000000"),
    "an interface of a bond": own("lan_interface: bond0.12"),
    "TensorBoard on the network": shared(
        "tensorboard_address: '{{ cluster_ip }}'\n        tensorboard_from: [192.168.7.0/24, any]"
    ),
    "options of roles": shared(
        "python_env_variant: cpu\n        firewall_ssh_from: [10.0.0.0/8, 10.0.0.9/32, fd00::9]"
    ),
    "numbers in quotes": shared("netplan_rollback_seconds: '120'\n        cluster_uid: '2700'"),
    "full names": [("node2:", "node2.lab.example.org:")],
}


@pytest.mark.parametrize("changes", FINE.values(), ids=FINE)
def test_good_inventories_have_no_findings(changes, tmp_path):
    assert found(write(tmp_path, changed(*changes))) == []


def test_a_plain_list_in_ini(tmp_path):
    assert found(write(tmp_path, PLAIN, "hosts.ini")) == []
    wrong = found(write(tmp_path, PLAIN.replace("10.0.0.2 ", "10.0.0.256 "), "hosts.ini"))
    assert wrong == [
        f"{tmp_path}/hosts.ini:6: node2: ansible_host is '10.0.0.256': write an IPv4 address such as 192.168.1.100"
    ]


IN_INI = {
    "cluster_nameservers=[192.168.1.1]": "write ['192.168.1.1'] in an INI file, or after -e '{\"cluster_nameservers\":",
    "firewall_ssh_from=[192.168.1.0/24, any]": "write ['192.168.1.0/24', 'any'] in an INI file",
    "cluster_routes=[{to: 10.1.0.0/16, via: 10.0.0.2}]": "write [{'to': '10.1.0.0/16', 'via': '10.0.0.2'}] in an INI",
    "cluster_nameservers=[192.168.1.1": "write a list, such as [192.168.1.1]",
}


@pytest.mark.parametrize(("line", "fix"), IN_INI.items())
def test_a_list_as_yaml_writes_it_in_ini(line, fix, tmp_path):
    wrong = found(write(tmp_path, f"{PLAIN}{line}\n", "hosts.ini"))
    assert len(wrong) == 1 and fix in wrong[0], wrong
    if "['" in fix:
        assert found(write(tmp_path, f"{PLAIN}cluster_nameservers=['192.168.1.1']\n", "hosts.ini")) == []


def test_the_labs(tmp_path, monkeypatch):
    """A script's output, as lab/inventory.py makes it for a lab with a proxy."""
    monkeypatch.setattr(Paths, "lib", property(lambda self: tmp_path / "lib"))
    monkeypatch.setattr(Paths, "run", property(lambda self: tmp_path / "run"))
    state = LabState(kind="container", subnet="10.1.2.0/24", uplink="10.1.3.0/24", owner=0, ready=True)
    for name in ("node1", "node2", "node3"):
        state.add_node(name)
    settings = HostSettings(find_links=["/wheels"], proxy_env={"http_proxy": "http://localhost:3128"})
    (tmp_path / "lib").mkdir()
    made = json.dumps(lab_inventory.inventory(Paths("unit"), state, settings))
    script = write(tmp_path, f"#!/bin/sh\ncat <<'END'\n{made}\nEND\n", "hosts.sh")
    script.chmod(0o755)
    assert found(script) == []
    script.write_text(script.read_text().replace("10.1.2.12", "10.1.4.12"))
    assert len(wrong := found(script)) == 1
    assert wrong[0].startswith(f"{script}: node2: cluster_ip is '10.1.4.12', outside 10.1.2.0/24")


def test_variables_in_files_of_their_own(tmp_path):
    file = write(tmp_path, changed((f":\n              {NODE2}", ":")))
    own_file = tmp_path / "host_vars/node2.yml"
    own_file.parent.mkdir()
    own_file.write_text("# node2 has two cards\nansible_host: 192.168.1.101\nnproc_per_node: 2\n")
    assert found(file) == []
    own_file.write_text("ansible_host: 192.168.1.101\nnproc_per_nod: 2\n")
    assert [line.partition(":2:")[0] for line in found(file)] == [str(own_file)]


def beside(tmp_path, name, text):
    """An inventory with a file of variables of its own beside it and the shared ones."""
    file = write(tmp_path, changed((f"        {GATEWAY}", "")))
    folder = tmp_path / "group_vars"
    folder.unlink()
    folder.mkdir()
    (folder / "all.yml").write_text((ROOT / "inventory/group_vars/all.yml").read_text())
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return file, folder / name


def test_what_is_empty_in_a_file_of_its_own_is_said_with_its_place(tmp_path):
    """Such a value carries no file and line, and its name is also one of the shared variables."""
    file, own_file = beside(tmp_path, "cluster.yml", "# ours\ncluster_gateway:\nstatic_ip: false\n")
    assert len(wrong := found(file)) == 1
    assert wrong[0].startswith(f"{own_file}:2: cluster_gateway has no value: write one")


def test_a_folder_that_hides_the_shared_variables(tmp_path):
    file, _ = beside(tmp_path, "all/vault.yml", "vault_sudo: x\n")
    assert len(wrong := found(file)) == 1
    assert f"rename the folder, to {tmp_path}/group_vars/cluster" in wrong[0]


def test_the_settings_of_a_run_are_no_misspelt_names():
    """`-e` puts them beside the inventory's variables; plan_job judges them."""
    known = known_names(role_options())
    candidates = [name for name in known if len(name) >= spelling.LONG_ENOUGH and "_" in name]
    unknown = [name for name in Config.__dataclass_fields__ if name not in known]
    assert len(unknown) > 20
    assert [name for name in unknown if spelling.nearest(name, candidates)] == []
    assert [name for name in unknown if name.startswith(prefixes())] == []
