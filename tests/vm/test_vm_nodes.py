"""Nodes with kernels of their own, for real: boots two virtual machines in a lab of their own. `make test-vm`.

The tests build on each other only in that they leave both nodes on, with the network as it was.
"""

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator

import pytest

from tests.labs import ROOT, Lab, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]  # emulated, on two cores that others use too

LAB = Lab("vmtest", patience=900)
lab, on, inside, status, power = LAB.command, LAB.on, LAB.inside, LAB.status, LAB.power
NODES = ["node1", "node2"]
NIC = "enp0s2"
NOTHING = {"processes": [], "files": [], "mounts": []}


def boot_id(node: str) -> str:
    return on(node, "cat /proc/sys/kernel/random/boot_id", check=False)


def traces() -> dict:
    sudo = [] if os.getuid() == 0 else ["sudo"]
    script = [sys.executable, str(ROOT / "tests/lab/traces.py"), LAB.name, "/var/cache/minos-lab"]
    return json.loads(subprocess.run([*sudo, *script], capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def host_before() -> dict:
    lab("down")
    before = traces()
    assert before["ours"] == NOTHING
    return before["host"]


@pytest.fixture(scope="module")
def nodes(host_before, tmp_path_factory) -> Iterator[dict[str, dict]]:
    """The lab, up, as `status` shows it."""
    layer = tmp_path_factory.mktemp("layer") / "layer.tar"
    with tarfile.open(layer, "w") as archive:
        archive.add(__file__, arcname="opt/layered")
    lab("up", "-n", "2", "--kind", "vm", "--memory", "1024", "--disk", "6", "--layer", str(layer))
    try:
        yield status()["nodes"]
    finally:
        lab("down")


def test_each_is_a_machine_as_the_installer_leaves_it(nodes):
    assert list(nodes) == NODES
    for name in NODES:
        assert on(name, "hostname; systemctl is-system-running --wait; sudo id -un").split() == [
            name,
            "running",
            "root",
        ]
        assert f"inet {nodes[name]['address']}/24" in on(name, f"ip -4 address show {NIC}")
        assert on(name, "uname -r") != os.uname().release
        assert f"iface {NIC} inet static" in on(name, "cat /etc/network/interfaces")
        assert on(name, "systemctl is-active networking systemd-networkd", check=False).split() == [
            "active",
            "inactive",
        ]
    size, memory = on("node1", "df --output=size -BG / | tail -1; free -m | awk '/Mem/{print $2}'").split()
    assert size in ("5G", "6G")
    assert 800 < int(memory) < 1024
    assert on("node2", "head -1 /opt/layered").startswith('"""Nodes with kernels'), "the layer is on the disk"
    assert len({on(name, "cat /etc/machine-id") for name in NODES}) == 2


def test_the_host_itself_is_untouched_while_the_lab_is_up(nodes, host_before):
    found = traces()
    assert found["host"] == host_before
    assert sum("qemu-system" in line for line in found["ours"]["processes"]) == 2


def test_the_kernel_has_what_containers_may_lack(nodes):
    on("node1", "sudo modprobe -a nfsd nfsv4 nf_tables ip6table_filter nft_compat overlay")
    assert "nfs4" in on("node1", "cat /proc/filesystems")
    # A unit's IPAddressDeny= needs BPF for control groups: here it is obeyed.
    refused = "sudo systemd-run -q --wait -p IPAddressDeny=any timeout 9 bash -c 'exec 3<>/dev/tcp/127.0.0.1/22'"
    assert lab("ssh", "node1", refused.replace("-p IPAddressDeny=any", ""), check=False).returncode == 0
    assert lab("ssh", "node1", refused, check=False).returncode != 0


def test_apt_and_the_hosts_own_packages_are_reachable(nodes):
    said = on("node2", "sudo apt-get update 2>&1")
    assert "Err:" not in said and "W:" not in said
    told = json.loads(lab("inventory").stdout)["all"]["vars"]
    local = [url for url in told["python_env_find_links"] + told["python_env_extra_index_urls"] if ":8099/" in url]
    for url in local:
        fetch = f"import urllib.request; print(urllib.request.urlopen('{url}').status)"
        assert on("node2", f'python3 -c "{fetch}"') == "200"


def test_an_outsider_tries_the_nodes_by_both_protocols(nodes):
    link_local = on("node1", f"ip -6 -json address show {NIC} scope link | grep -o 'fe80[^\"]*'")
    for address in (nodes["node1"]["address"], f"{link_local}%lan"):
        knock = f"import socket; print(socket.create_connection(('{address}', 22), 20).recv(8).decode())"
        assert lab("exec", "lan", sys.executable, "-c", knock).stdout.strip() == "SSH-2.0-"


def test_a_command_as_root_needs_no_network(nodes):
    lab("cable", "node2", "down")
    assert lab("ssh", "node1", f"ping -c1 -W2 {nodes['node2']['address']}", check=False).returncode == 1
    assert "NO-CARRIER" in inside("node2", f"ip link show {NIC}")
    assert inside("node2", "id -un; hostname").split() == ["root", "node2"]
    assert lab("exec", "node2", "sh", "-c", "echo out; echo err >&2; exit 7", check=False).returncode == 7
    lab("cable", "node2", "up")
    wait_until(lambda: on("node2", "hostname", check=False) == "node2")


def test_a_node_that_moved_is_found_at_its_spare_address(nodes):
    own, spare = nodes["node2"]["address"], nodes["node2"]["spare_address"]
    move = "ip address flush dev {nic}; ip address add {to}/24 dev {nic}; ip route add default via {gateway}"
    gateway = f"{own.rpartition('.')[0]}.1"
    inside("node2", move.format(nic=NIC, to=spare, gateway=gateway))
    facts = json.loads(lab("inventory").stdout)["_meta"]["hostvars"]["node2"]
    words = f"ssh -F none -i {facts['ansible_ssh_private_key_file']} {facts['ansible_ssh_common_args']} lab@{spare}"
    there = subprocess.run(["sh", "-c", f"{words} hostname"], capture_output=True, text=True, timeout=120)
    assert there.stdout == "node2\n", there.stderr
    assert lab("ssh", "node2", "true", check=False).returncode == 255
    inside("node2", move.format(nic=NIC, to=own, gateway=gateway))
    assert on("node2", "hostname") == "node2"


def test_snapshot_brings_back_disk_memory_and_the_present_time(nodes):
    before = {name: boot_id(name) for name in NODES}
    for name in NODES:
        on(name, "sudo systemd-run -q --unit=memory sleep infinity; echo then | sudo tee /etc/probe; sync")
    lab("snapshot", "ready")
    assert status()["snapshots"] == {"ready": NODES}
    for name in NODES:
        on(name, "sudo systemctl stop memory; echo now | sudo tee /etc/probe; sync")
    lab("kill", "node2")  # one is off, the other on

    lab("restore", "ready")
    for name in NODES:
        assert boot_id(name) == before[name], "it was booted, not restored"
        assert on(name, "cat /etc/probe; systemctl is-active memory").split() == ["then", "active"]
        assert abs(float(on(name, "date +%s.%N")) - time.time()) < 5
    assert "no snapshot 'never'" in lab("restore", "never", check=False).stderr


def test_a_pulled_plug_loses_what_was_not_flushed(nodes):
    before = boot_id("node2")
    inside(
        "node2", "sysctl -qw vm.dirty_writeback_centisecs=0; echo kept > /var/tmp/kept; sync; echo lost > /var/tmp/lost"
    )
    lab("kill", "node2")  # at once: a login would make the guest write
    assert power() == {"node1": "on", "node2": "off"}
    assert "is off" in lab("exec", "node2", "true", check=False).stderr
    lab("start", "node2")
    assert boot_id("node2") not in ("", before)
    assert on("node2", "cat /var/tmp/kept; cat /var/tmp/lost || true") == "kept"


def test_reboot_from_inside_and_clean_off(nodes):
    before = boot_id("node2")
    lab("ssh", "node2", "sudo reboot", check=False)
    wait_until(lambda: boot_id("node2") not in ("", before))
    on("node2", "sudo systemd-run -q --unit=bye -p ExecStop='/bin/touch /var/tmp/goodbye' sleep infinity")
    lab("kill", "node2", "--off")
    assert power() == {"node1": "on", "node2": "off"}
    lab("up")
    assert on("node2", "ls /var/tmp/goodbye") == "/var/tmp/goodbye"


def test_bandwidth_is_limited_both_ways(nodes):
    push = "import socket; s = socket.create_connection(('{}', 5001)); s.sendall(bytes(4_000_000))"
    pull = (
        "import socket, time\\nc, _ = socket.create_server(('', 5001)).accept()\\n"
        "got = len(c.recv(65536))\\nt = time.time()\\n"
        "while b := c.recv(65536): got += len(b)\\n"
        "print(got * 8e-6 / (time.time() - t))"
    )
    lab("bandwidth", "node2", "8mbit")
    for sender, receiver in (NODES, NODES[::-1]):
        inside(
            receiver,
            f'printf "{pull}" > /pull.py; systemd-run -q --unit=pull -p StandardOutput=file:/rate python3 /pull.py',
        )
        wait_until(lambda receiver=receiver: on(receiver, "ss -Hltn sport = :5001"))
        on(sender, f'python3 -c "{push.format(nodes[receiver]["address"])}"')
        wait_until(lambda receiver=receiver: inside(receiver, "systemctl is-active pull", check=False) == "inactive")
        assert 6 < float(inside(receiver, "cat /rate; rm /rate")) < 9
    lab("bandwidth", "node2", "none")


def test_reset_gives_a_new_disk_but_the_same_address_and_host_key(nodes):
    key = on("node2", "cat /etc/ssh/ssh_host_ed25519_key.pub; sudo touch /etc/changed")
    lab("reset", "node2")
    assert on("node2", "ls /etc/changed || true") == ""
    assert on("node2", "cat /etc/ssh/ssh_host_ed25519_key.pub") == key
    assert status()["snapshots"] == {}, "it was of the old disk"


def test_what_a_lab_is_made_of_does_not_change_under_it(nodes):
    assert "made of vm nodes" in lab("up", "--kind", "container", check=False).stderr
    assert "--memory is 1024 in this lab" in lab("up", "--memory", "2048", check=False).stderr


def test_down_leaves_nothing_even_after_a_crash(nodes, host_before):
    sudo = [] if os.getuid() == 0 else ["sudo"]
    subprocess.run([*sudo, "rm", f"/var/lib/minos-lab/{LAB.name}/lab.json"], check=True)
    lab("down")
    after = traces()
    assert after["ours"] == NOTHING
    assert after["host"] == host_before
