"""The throw-away nodes themselves, for real: boots two in a lab of their own, beside any lab that is up."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
LAB = "labtest"
NODES = ["node1", "node2"]
CACHE = "/var/cache/minos-lab"
TRANSFER = """
import socket, sys, time
megabytes, peer = int(sys.argv[1]), sys.argv[2]
if peer == "-":
    listener = socket.create_server(("", 5001))
    print("ready", flush=True)
    connection, _ = listener.accept()
    got = len(connection.recv(1 << 16))
    started = time.monotonic()
    while chunk := connection.recv(1 << 16):
        got += len(chunk)
    print(got * 8 / 1e6 / (time.monotonic() - started))
else:
    with socket.create_connection((peer, 5001)) as connection:
        connection.sendall(bytes(megabytes * 1000 * 1000))
"""


def lab_command(*arguments: str) -> list[str]:
    return [sys.executable, "-B", "-m", "lab", *arguments]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "MINOS_LAB": LAB, **more}


def lab(*arguments: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        lab_command(*arguments), cwd=ROOT, env=environment(), input=stdin, capture_output=True, text=True, timeout=300
    )
    assert not check or done.returncode == 0, f"lab {' '.join(arguments)}: {done.stderr or done.stdout}"
    return done


def on(node: str, command: str, **more) -> str:
    """Run a shell command on a node over SSH, as its user."""
    return lab("ssh", node, command, **more).stdout.strip()


def power() -> dict[str, str]:
    nodes = json.loads(lab("status", "--json").stdout)["nodes"]
    return {name: node["power"] for name, node in nodes.items()}


def traces(cache: str = CACHE) -> dict:
    sudo = [] if os.getuid() == 0 else ["sudo"]
    script = [sys.executable, str(Path(__file__).with_name("traces.py")), LAB, cache]
    return json.loads(subprocess.run([*sudo, *script], capture_output=True, text=True, check=True).stdout)


NOTHING = {"processes": [], "files": [], "mounts": []}


@pytest.fixture(scope="module")
def host_before() -> dict:
    lab("down")
    before = traces()
    assert before["ours"] == NOTHING
    return before["host"]


@pytest.fixture(scope="module")
def address(host_before) -> Iterator[dict[str, str]]:
    """The lab, up: node name -> its address."""
    lab("up", "-n", "2")
    try:
        nodes = json.loads(lab("status", "--json").stdout)["nodes"]
        yield {name: node["address"] for name, node in nodes.items()}
    finally:
        lab("down")


def test_each_node_is_a_machine_of_its_own(address):
    assert list(address) == NODES
    seen = set()
    for name in NODES:
        assert on(name, "hostname") == name
        assert on(name, "systemctl is-system-running --wait") == "running"
        assert f"inet {address[name]}/24" in on(name, "ip -4 address show lan0")
        assert on(name, "sudo id -un") == "root"
        seen.add((on(name, "cat /etc/machine-id"), on(name, "cat /etc/ssh/ssh_host_ed25519_key.pub")))
    assert len({part for pair in seen for part in pair}) == 4


def test_the_host_itself_is_untouched_while_the_lab_is_up(address, host_before):
    found = traces()
    assert found["host"] == host_before
    # The same look at the host does see the lab, so an empty list elsewhere means something.
    assert any("systemd-journald" in line for line in found["ours"]["processes"])
    assert any("slirp4netns" in line for line in found["ours"]["processes"])
    assert f"/run/netns/minos-{LAB}" in found["ours"]["files"]
    assert any("cgroup" in line for line in found["ours"]["files"])
    assert any("nsfs" in line for line in found["ours"]["mounts"])


def test_up_again_changes_nothing(address):
    boots = [on(name, "cat /proc/sys/kernel/random/boot_id") for name in NODES]
    lab("up")
    assert boots == [on(name, "cat /proc/sys/kernel/random/boot_id") for name in NODES]


def test_nodes_reach_each_other_by_ssh_with_host_keys_checked(address):
    private = Path("/var/lib/minos-lab") / LAB / "private"
    for here, there in (NODES, NODES[::-1]):
        on(here, "umask 077; cat > key", stdin=(private / "id_ed25519").read_text())
        on(here, "cat > known", stdin=(private / "known_hosts").read_text())
        options = "-i key -o BatchMode=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile=known"
        assert on(here, f"ssh {options} {address[there]} hostname") == there


def test_a_swapped_host_key_is_refused(address):
    known = Path("/var/lib/minos-lab") / LAB / "private/known_hosts"
    right = known.read_text()
    swapped = {address["node1"]: address["node2"], address["node2"]: address["node1"]}
    known.write_text(
        "".join(
            f"{swapped[ip.partition(',')[0]]} {rest}\n"
            for ip, rest in (line.split(" ", 1) for line in right.split("\n") if line)
        )
    )
    try:
        refused = lab("ssh", "node1", "true", check=False)
    finally:
        known.write_text(right)
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr


def test_password_login_works_until_a_role_forbids_it(address, tmp_path):
    options = json.loads(lab("inventory").stdout)["_meta"]["hostvars"]["node1"]
    ask = tmp_path / "ask"
    ask.write_text(f"#!/bin/sh\ncat /var/lib/minos-lab/{LAB}/private/password\n")
    ask.chmod(0o700)
    only_password = [
        "-o",
        "PreferredAuthentications=password",
        "-o",
        "PubkeyAuthentication=no",
        "-o",
        "NumberOfPasswordPrompts=1",
    ]
    words = f"ssh {options['ansible_ssh_common_args']} lab@{options['ansible_host']}"
    login = subprocess.run(
        ["sh", "-c", f"{words} \"$@\" hostname", "sh", *only_password],
        env=environment(SSH_ASKPASS=str(ask), SSH_ASKPASS_REQUIRE="force"),
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert login.stdout == "node1\n", login.stderr


def test_apt_reaches_the_outside(address):
    mirror = on(
        "node1", "sed -n 's|^URIs: *[a-z]*://\\([^/:]*\\).*|\\1|p' /etc/apt/sources.list.d/debian.sources | head -1"
    )
    assert on("node1", f"getent ahostsv4 {mirror}"), "names are resolved"
    said = on("node1", "sudo apt-get update 2>&1")
    assert "Reading package lists" in said
    assert "Err:" not in said and "W:" not in said


def test_firewall_and_kernel_settings_of_a_node_are_its_own(address, host_before):
    rules = "add table inet probe; add chain inet probe in { type filter hook input priority 0; }"
    on("node1", "sudo apt-get install -yqq --no-install-recommends nftables iptables >/dev/null")
    on("node1", f"sudo nft '{rules}' && sudo iptables -A INPUT -p tcp --dport 9 -j DROP")
    on("node1", "sudo sysctl -qw net.ipv4.ip_local_reserved_ports=29500")
    assert on("node1", "cat /proc/sys/net/ipv4/ip_local_reserved_ports") == "29500"
    assert on("node2", "cat /proc/sys/net/ipv4/ip_local_reserved_ports") == ""
    assert traces()["host"] == host_before


def test_shared_directory_is_one(address):
    on("node1", "sudo mkdir -p /srv/minos/probe && echo hello | sudo tee /srv/minos/probe/file")
    assert on("node2", "cat /srv/minos/probe/file") == "hello"


def test_exec_is_root_inside_and_lan_is_no_node(address):
    assert lab("exec", "node2", "sh", "-c", "hostname; id -un; systemctl is-active ssh").stdout.split() == [
        "node2", "root", "active",
    ]  # fmt: skip
    outside = lab("exec", "lan", "ip", "-4", "-brief", "address").stdout
    assert not any(f"{ip}/" in outside for ip in address.values())
    banner = f"exec 3<>/dev/tcp/{address['node1']}/22; head -c 8 <&3"
    assert lab("exec", "lan", "bash", "-c", banner).stdout == "SSH-2.0-"
    assert lab("exec", "node1", "sh", "-c", "exit 7", check=False).returncode == 7


def test_clean_off_lets_services_stop_and_pulled_plug_does_not(address):
    goodbye = "sudo systemd-run -q --unit=bye -p ExecStop='/bin/touch /var/tmp/goodbye' sleep infinity"
    on("node2", f"sudo rm -f /var/tmp/goodbye; {goodbye}")
    lab("kill", "node2")
    assert power() == {"node1": "on", "node2": "off"}
    assert "is off" in lab("exec", "node2", "true", check=False).stderr
    lab("start", "node2")
    assert on("node2", "sudo find /var/tmp/ -name goodbye") == ""

    on("node2", goodbye)
    lab("kill", "node2", "--off")
    assert power() == {"node1": "on", "node2": "off"}
    lab("up")
    assert power() == {"node1": "on", "node2": "on"}
    assert on("node2", "sudo find /var/tmp/ -name goodbye") == "/var/tmp/goodbye"


def test_a_pulled_plug_says_nothing_to_its_peers(address):
    server = background("node2", f"python3 -c '{TRANSFER}' 0 -")
    connect = f'socket.create_connection(("{address["node2"]}", 5001))'
    hold = f'import socket, time; peer = {connect}; peer.send(b"x"); time.sleep(60)'
    assert server.stdout.readline() == "ready\n"
    client = background("node1", f"python3 -c '{hold}'")
    try:
        established = f"ss -Htn state established dst {address['node2']}:5001"
        wait_until(lambda: on("node1", established))
        lab("kill", "node2")
        time.sleep(2)
        assert on("node1", established), "node1 heard that its peer closed the connection"
    finally:
        client.kill()
        server.kill()
        client.wait()
        server.wait()
    lab("start", "node2")


def test_reboot_from_inside_comes_back_without_firewall_rules(address):
    before = on("node1", "cat /proc/sys/kernel/random/boot_id; sudo iptables -A INPUT -p tcp --dport 9 -j DROP")
    lab("ssh", "node1", "sudo reboot", check=False)
    wait_until(
        lambda: (
            lab("ssh", "node1", "cat /proc/sys/kernel/random/boot_id", check=False).stdout.strip() not in ("", before)
        )
    )
    assert "dport 9" not in on("node1", "sudo iptables -S")


def test_poweroff_from_inside_is_seen(address):
    lab("ssh", "node1", "sudo poweroff", check=False)
    wait_until(lambda: power()["node1"] == "off")
    lab("start", "node1")


def test_a_node_that_lost_its_supervisor_is_found_and_ended(address):
    """As after an out-of-memory kill on the host: what still runs is not doubled and not lost."""
    host_side = [line for line in traces()["ours"]["processes"] if "supervisor" in line or "nspawn" in line]
    run_as_root("kill", "-9", *(line.split()[0] for line in host_side if line.endswith("node2") or "-node2 " in line))
    wait_until(lambda: power()["node2"] == "off")
    boot = on("node2", "cat /proc/sys/kernel/random/boot_id", check=False)
    lab("start", "node2")
    assert on("node2", "cat /proc/sys/kernel/random/boot_id") != boot
    firsts = [line for line in traces()["ours"]["processes"] if line.endswith("/systemd/systemd")]
    assert len(firsts) == len(NODES)


def test_a_half_made_disk_is_made_anew(address):
    lab("kill", "node2")
    disk = f"/var/lib/minos-lab/{LAB}/nodes/node2"
    run_as_root("mv", f"{disk}/root", f"{disk}/draft")
    run_as_root("touch", f"{disk}/draft/stale")
    assert "not made yet" in lab("status").stdout
    lab("up")
    assert on("node2", "find / -maxdepth 1 -name stale") == ""


def test_cable(address):
    ping = f"ping -c1 -W1 {address['node2']}"
    on("node1", ping)
    lab("cable", "node2", "down")
    assert lab("ssh", "node1", ping, check=False).returncode == 1
    assert "NO-CARRIER" in lab("exec", "node2", "ip", "link", "show", "lan0").stdout
    lab("cable", "node2", "up")
    wait_until(lambda: lab("ssh", "node1", ping, check=False).returncode == 0)


def test_bandwidth_is_limited_both_ways_and_over_a_restart(address):
    assert transfer(address, "node1", "node2", megabytes=100) > 200
    lab("bandwidth", "node2", "20mbit")
    assert 15 < transfer(address, "node1", "node2", megabytes=5) < 22
    assert 15 < transfer(address, "node2", "node1", megabytes=5) < 22
    lab("kill", "node2")
    lab("start", "node2")
    assert 15 < transfer(address, "node1", "node2", megabytes=5) < 22
    lab("bandwidth", "node2", "none")
    assert transfer(address, "node1", "node2", megabytes=100) > 200


def test_reset_gives_a_new_disk_but_the_same_address_and_host_key(address):
    def identity():
        return on("node2", "cat /etc/machine-id"), on("node2", "cat /etc/ssh/ssh_host_*.pub")

    machine, host_key = identity()
    on("node2", "sudo touch /etc/changed")
    lab("reset", "node2")
    assert on("node2", "ls /etc/changed || true") == ""
    assert identity() == (identity()[0], host_key)
    assert identity()[0] != machine
    assert f"inet {address['node2']}/24" in on("node2", "ip -4 address show lan0")


def test_ansible_reaches_the_nodes_by_the_shipped_inventory(address):
    ansible = Path(sys.executable).with_name("ansible")
    done = subprocess.run(
        [str(ansible), "-i", "inventory/lab", "gpu_nodes", "-m", "ansible.builtin.command", "-a", "hostname"],
        cwd=ROOT, env=environment(ANSIBLE_HOST_KEY_CHECKING="True"), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line for line in done.stdout.splitlines() if line.startswith("node") and " " not in line} == set(NODES)


def test_making_a_lab_smaller_is_refused(address):
    refused = lab("up", "-n", "1", check=False)
    assert refused.returncode == 1
    assert refused.stderr == "lab: -n 1: the lab has 2 nodes; to make it smaller: python3 -m lab down\n"


def test_down_leaves_nothing_and_the_inventory_says_so(address, host_before):
    lab("down")
    after = traces()
    assert after["ours"] == NOTHING
    assert after["host"] == host_before
    lab("down")
    refused = subprocess.run([str(ROOT / "inventory/lab/hosts.py")], env=environment(), capture_output=True, text=True)
    assert (refused.returncode, refused.stderr) == (1, "lab: the lab is not up: run make lab-up\n")


def test_down_without_the_state_file(host_before):
    lab("up", "-n", "1")
    run_as_root("rm", f"/var/lib/minos-lab/{LAB}/lab.json")
    lab("down")
    assert traces()["ours"] == NOTHING


INTERRUPTS = [(0.3, signal.SIGKILL), (1, signal.SIGINT), (3.5, signal.SIGKILL), (5, signal.SIGINT)]


@pytest.mark.parametrize(("seconds", "how"), INTERRUPTS)
def test_interrupted_up_then_down_leaves_nothing(seconds, how, host_before):
    interrupt("up", how, seconds)
    lab("down")
    after = traces()
    assert after["ours"] == NOTHING
    assert after["host"] == host_before


@pytest.mark.parametrize("seconds", [0.6, 3])
def test_interrupted_up_then_up_finishes_it(seconds, host_before):
    interrupt("up", signal.SIGKILL, seconds)
    lab("up", "-n", "2")
    assert power() == {"node1": "on", "node2": "on"}
    for name in NODES:
        assert on(name, "hostname; systemctl is-system-running --wait").split() == [name, "running"]
    lab("down")
    assert traces()["ours"] == NOTHING


def test_interrupted_down_then_down_leaves_nothing(host_before):
    for seconds in (0.3, 0.6):
        lab("up", "-n", "2")
        interrupt("down", signal.SIGKILL, seconds)
    lab("down")
    assert traces()["ours"] == NOTHING


def test_interrupted_image_build_leaves_no_process_and_no_mount(host_before, tmp_path):
    cache = tmp_path / "cache"
    lab("down")  # nodes that an earlier test left need no image
    log = cache / "building" / "log"
    interrupt(
        "up", signal.SIGKILL, lambda: log.exists() and "extracting" in log.read_text(), MINOS_LAB_CACHE=str(cache)
    )
    assert (cache / "building").is_dir(), "the build was not under way"
    wait_until(lambda: not any("mmdebstrap" in line or str(cache) in line for line in traces()["ours"]["processes"]))
    subprocess.run(lab_command("down"), cwd=ROOT, env=environment(MINOS_LAB_CACHE=str(cache)), check=True)
    after = traces(str(cache))
    assert after["ours"] == NOTHING
    assert after["host"] == host_before


def interrupt(verb: str, how: signal.Signals, when: float | Callable[[], bool], **more: str) -> None:
    """Start a lab command and signal it, and nothing else, after some seconds or when something holds."""
    count = ["-n", "2"] if verb == "up" else []
    command = subprocess.Popen(
        lab_command(verb, *count),
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        if callable(when):
            wait_until(when)
        else:
            time.sleep(when)
    finally:
        if command.poll() is None:
            run_as_root("kill", f"-{how.value}", str(command.pid))
        command.wait(timeout=60)


def background(node: str, command: str) -> subprocess.Popen[str]:
    """A command on a node that goes on meanwhile."""
    return subprocess.Popen(
        lab_command("ssh", node, command),
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_as_root(*argv: str) -> None:
    subprocess.run([*([] if os.getuid() == 0 else ["sudo"]), *argv], check=True)


def transfer(address: dict[str, str], sender: str, receiver: str, *, megabytes: int) -> float:
    """Mbit/s of one TCP connection between two nodes, as the receiver sees it."""
    program = f"python3 -c '{TRANSFER}'"
    server = background(receiver, f"{program} 0 -")
    assert server.stdout.readline() == "ready\n"
    on(sender, f"{program} {megabytes} {address[receiver]}")
    rate, _ = server.communicate(timeout=60)
    return float(rate)


def wait_until(condition, patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.3)
