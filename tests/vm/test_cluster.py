"""The whole way on three machines with kernels of their own: bare, a cluster, all without power at once, a run of
training; and what NFS and the firewall must hold meanwhile.

The tests build on each other and run in their order.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fingerprint import EXPLAINED, differences, take
from tests.labs import LAB_COMMAND, ROOT, VM_PACKAGES, Lab, changed, recap, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(2400)]  # emulated, on two cores that others use too

LAB = Lab("vmcluster", patience=2300, variables={"ANSIBLE_TIMEOUT": "60"})
HEAD, WORKER, OTHER = NODES = ["node1", "node2", "node3"]
NIC = "enp0s2"
SHARE = "/srv/minos"
JOBS = f"{SHARE}/jobs"
STORE, NFS = 29500, 2049
inside = LAB.inside
# The environment is on the disks beforehand: what the head would keep for the others is fetched and counted in
# tests/lab/test_python_env.py, in minutes that are hours here.
SITE = ("site.yml", "-e", "python_env_packages_path=")
# While one works on these tests: a lab that is up is used as it is, and stays up.
KEEP = "MINOS_KEEP_LAB" in os.environ


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """The Python environment, installed by its role in a container: an emulated machine takes more than eight minutes.

    On the machines the role finds it, compares it with the lock and leaves it alone; tests/lab/test_cluster.py sees it
    installed on bare nodes.
    """
    layer = tmp_path_factory.mktemp("layer") / "environment.tar"
    if KEEP:
        return layer
    maker = Lab("vmlayer")
    maker.command("down")
    try:
        maker.command("up", "-n", "1")
        maker.playbook("site.yml", "--tags", "packages,service_user,shared_dir,python_env")
        # Without the installer: where it is, a node counts as one of ours already, and reset gives back less.
        tar = [*LAB_COMMAND, "exec", HEAD, "tar", "-C", "/", "-cf", "-", "--exclude=opt/minos/uv", "opt/minos"]
        with layer.open("wb") as file:
            subprocess.run(tar, cwd=ROOT, env=maker.environment, stdout=file, check=True, timeout=300)
    finally:
        maker.command("down")
    return layer


@pytest.fixture(scope="module", autouse=True)
def nodes(environment) -> Iterator[dict[str, dict]]:
    if KEEP:
        yield LAB.nodes()
        return
    LAB.command("down")
    LAB.command("up", "-n", "3", "--kind", "vm", "--packages", VM_PACKAGES, "--layer", str(environment))
    yield LAB.nodes()
    LAB.command("down")


def look(node: str) -> dict[str, dict[str, str]]:
    """Without the environment, which was on the disk beforehand and so is its owner's."""
    return take(lambda *argv: LAB.command("exec", node, *argv).stdout, without=["/opt/minos"])


@pytest.fixture(scope="module", autouse=True)
def virgin(nodes, request) -> dict[str, dict]:
    """How the NFS server and one of its clients were before anything; noted, for a lab that is kept."""
    bare = inside(HEAD, "test -e /etc/minos && echo ours; true") == ""
    if bare:
        request.config.cache.set("vmcluster/virgin", {node: look(node) for node in (HEAD, WORKER)})
    return request.config.cache.get("vmcluster/virgin", {})


def as_user(command: str) -> str:
    return f"runuser -u minos -- sh -c {shlex.quote(command)}"


def test_check_mode_works_on_virgin_machines_and_changes_nothing():
    done = LAB.playbook(*SITE, "--check", "--diff")
    assert all(counts["failed"] == 0 for counts in recap(done).values())
    assert changed(done)[OTHER] > 20, "it should say what it would change"
    ours = "/etc/minos /etc/exports.d /etc/netplan/60-minos.yaml /etc/ssh/sshd_config.d/10-minos.conf"
    for node in NODES:
        assert inside(node, f"ls -d {ours} 2>/dev/null; getent passwd minos; true") == ""


def test_site_makes_them_a_cluster():
    LAB.playbook(*SITE)


def test_a_second_run_changes_nothing():
    assert changed(LAB.playbook(*SITE)) == dict.fromkeys(["localhost", *NODES], 0)


# What a kernel of one's own has a part in, and what a boot could lose: a check takes ten seconds here. All the others
# are made of containers, in tests/lab/test_cluster.py.
KERNELS = "netplan or cluster_hosts or firewall or nfs or shared or rendezvous or ssh_mesh_logs_in"


def test_the_nodes_are_what_the_roles_promised():
    done = LAB.checks("-k", KERNELS)
    assert done.returncode == 0, done.stdout[-6000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 40


def assert_it_is_all_there(nodes: dict[str, dict]) -> None:
    """Address, share, firewall and store, asked inside: nobody has logged in who could have mended something."""
    for name, node in nodes.items():
        assert inside(name, "systemctl is-system-running --wait", check=False) == "running", name
        assert re.findall(r"inet (\S+)", inside(name, f"ip -4 address show {NIC}")) == [f"{node['address']}/24"]
        assert inside(name, "ufw status | head -1; iptables -S INPUT | head -1; ip6tables -S INPUT | head -1") == (
            "Status: active\n-P INPUT DROP\n-P INPUT DROP"
        )
        *there, kind = inside(name, f"runuser -u minos -- ls {SHARE} && stat -f -c %T {SHARE}").split()
        assert {"jobs", "models"} <= set(there) and kind == ("ext2/ext3" if name == HEAD else "nfs")
    assert inside(HEAD, "systemctl is-active minos-store nfs-server").split() == ["active", "active"]


def test_all_three_lose_power_at_once_and_come_back_by_themselves(nodes):
    before = {name: boot_id(name) for name in NODES}
    for name in NODES:
        LAB.command("kill", name)
    LAB.command("up")
    assert all(boot_id(name) not in ("", before[name]) for name in NODES)
    assert_it_is_all_there(nodes)


def test_after_it_they_are_what_the_roles_promised():
    done = LAB.checks("-k", KERNELS)
    assert done.returncode == 0, done.stdout[-6000:]


STEPS = 40
SMALL = (
    "config=training/configs/text.yaml nnodes=3 job=small global_batch=6 micro_batch=2 seq_len=64 warmup_steps=2 "
    f"steps={STEPS} save_every=5 log_every=1 heldout_rows=6 sample_tokens=0 "
    "scratch_hidden=32 scratch_layers=1 scratch_heads=2 scratch_mlp=64"
)


def state(job: str) -> dict:
    return json.loads(inside(HEAD, f"cat {JOBS}/{job}/state.json"))


def test_a_run_keeps_its_checkpoints_on_the_share_and_goes_on_from_there(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text((ROOT / "README.md").read_text())
    start = ["train.yml", "-e", f"{SMALL} data_train={text}"]
    LAB.playbook(*start, "-e", "follow=false")
    wait_until(lambda: "step-" in inside(HEAD, f"ls {JOBS}/small/checkpoints 2>/dev/null", check=False), 900, pause=2)
    inside(WORKER, "systemctl stop minos-train@small")
    left = state("small")
    assert left["state"] == "running" and 0 < left["step"] < STEPS
    inside(WORKER, "systemctl start minos-train@small")
    done = LAB.playbook(*start)
    assert f"Job small: done at step {STEPS} of {STEPS}" in done.stdout
    journals = "".join(inside(name, "journalctl --no-pager -o cat -u minos-train@small") for name in NODES)
    assert re.search(rf"resumed from .*\(step {left['step']}/{STEPS}\)", journals)
    everything = as_user(f"cd {state('small')['checkpoint']} && find . -type f -exec sha256sum {{}} + | sort")
    found = {inside(name, everything) for name in NODES}
    assert len(found) == 1 and "manifest.json" in found.pop(), "not the same on every node"


SUM = "sha256sum < {} | cut -d' ' -f1"
MEGABYTES = 200


def boot_id(node: str) -> str:
    """Empty while it does not answer."""
    return inside(node, "cat /proc/sys/kernel/random/boot_id", check=False)


def reboot_cleanly(node: str) -> None:
    before = boot_id(node)
    inside(node, "systemctl reboot", check=False)
    wait_until(lambda: boot_id(node) not in ("", before), 600, pause=3)


DISTURBANCES = {
    "its service restarted": lambda: inside(HEAD, "systemctl restart nfs-server"),
    "rebooted": lambda: reboot_cleanly(HEAD),
}


@pytest.mark.parametrize("disturb", DISTURBANCES.values(), ids=DISTURBANCES)
def test_a_file_is_whole_although_the_server_was(disturb):
    """A client writes 200 MB, slowly enough that the server is away in the middle of it."""
    source, target, status = "/var/tmp/written", f"{JOBS}/.written", "/var/tmp/status"
    inside(HEAD, f"rm -f {target}")
    inside(WORKER, f"rm -f {status}; head -c {MEGABYTES}M /dev/urandom > {source}")
    LAB.command("bandwidth", WORKER, "40mbit")
    try:
        write = f"dd if={source} of={target} bs=1M conv=fsync; echo $? > {status}"
        inside(WORKER, f"systemd-run --quiet --collect --unit=writer sh -c {shlex.quote(as_user(write))}")
        wait_until(lambda: int(inside(HEAD, f"stat -c %s {target} || echo 0")) > 20e6, pause=1)
        disturb()
        began = time.monotonic()
        assert inside(WORKER, f"cat {status}", check=False) == "", "it was written before the server was away"
        wait_until(lambda: inside(WORKER, f"cat {status}", check=False), 900, pause=3)
        print(f"written {time.monotonic() - began:.0f} s after the server was back")
    finally:
        LAB.command("bandwidth", WORKER, "none")
    assert inside(WORKER, f"cat {status}") == "0"
    wanted = inside(WORKER, SUM.format(source))
    assert inside(HEAD, SUM.format(target)) == wanted
    assert inside(OTHER, as_user(SUM.format(target))) == wanted
    inside(HEAD, f"rm {target}")


def open_to_a_stranger(node: str, address: str) -> set[int]:
    """Try every TCP port from a machine on the LAN that is no member.

    A port that is filtered never answers: it is asked twice, and the node itself counts the questions. Where a machine
    is too busy for so many, they are put again more slowly.
    """
    filter_, options = ("ip6tables", ["-6"]) if ":" in address else ("iptables", [])
    rule = f"PREROUTING -i {NIC} -p tcp --syn -m comment --comment scan"
    for rate in (3000, 1500, 700):
        inside(node, f"{filter_} -t mangle -I {rule}")
        try:
            scan = ["nmap", *options, "-v", "-n", "-Pn", "-sS", "-p-", "--max-retries=1", f"--min-rate={rate}", address]
            said = LAB.outside(*scan).stdout
            arrived = int(inside(node, f"{filter_} -t mangle -nvxL PREROUTING").splitlines()[2].split()[0])
        finally:
            inside(node, f"{filter_} -t mangle -D {rule}")
        sent = int(re.search(r"Raw packets sent: (\d+)", said)[1])
        print(f"{address}: {arrived} of {sent} questions arrived, {re.search(r'[0-9.]+ seconds', said)[0]}")
        if sent > 65535 and arrived > 0.999 * sent:
            return {int(port) for port in re.findall(r"^(\d+)/tcp +open ", said, re.MULTILINE)}
    raise AssertionError(f"{address}: only {arrived} of {sent} questions arrived")


def addresses(node: dict, name: str) -> list[str]:
    """By both protocols, as the machine that is no node writes them."""
    link_local = inside(name, f"ip -6 -oneline address show {NIC} scope link").split()[3].partition("/")[0]
    return [node["address"], f"{link_local}%lan"]


@pytest.mark.parametrize("name", [HEAD, WORKER])
def test_a_stranger_sees_no_port_but_ssh(name, nodes):
    for address in addresses(nodes[name], name):
        assert open_to_a_stranger(name, address) == {22}, address


def test_a_port_that_is_open_to_all_is_seen(nodes):
    """The test above can fail."""
    inside(OTHER, "systemd-run --quiet --collect --unit=door python3 -m http.server --bind :: 51234; ufw allow 51234")
    try:
        for address in addresses(nodes[OTHER], OTHER):
            assert open_to_a_stranger(OTHER, address) == {22, 51234}, address
    finally:
        inside(OTHER, "ufw delete allow 51234; systemctl stop door")


CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)"


@pytest.mark.parametrize("port", [STORE, NFS], ids=["store", "nfs"])
def test_a_member_reaches_what_a_stranger_does_not(port, nodes):
    head = nodes[HEAD]["address"]
    inside(WORKER, f"python3 -c '{CONNECT}' {head} {port}")
    refused = LAB.outside("python3", "-c", CONNECT, head, str(port), check=False)
    assert "timed out" in refused.stderr


def test_a_stranger_mounts_nothing_even_without_the_firewall(nodes):
    """By an NFS client that needs no kernel (libnfs), so that it can be tried from the LAN. It works: admitted by the
    firewall and by the server, it sees the directory.
    """
    head, stranger = nodes[HEAD]["address"], f"{nodes[HEAD]['address'].rpartition('.')[0]}.1"

    def listed() -> str:
        done = LAB.outside("timeout", "40", "nfs-ls", f"nfs://{head}{SHARE}?version=4", check=False)
        return done.stdout if done.returncode == 0 else ""

    export, rule = f"{stranger}:{SHARE}", f"allow from {stranger} to any port {NFS} proto tcp"
    assert listed() == "", "the firewall lets it through"
    inside(HEAD, f"ufw {rule}")
    try:
        assert listed() == "", "the server admits it"
        inside(HEAD, f"exportfs -o ro {export}")
        assert "jobs" in listed()
    finally:
        inside(HEAD, f"exportfs -u {export}; ufw delete {rule}")
    assert listed() == ""


# On these disks ufw is there, and has never had a rule; whether one is left is looked at by ufw's own answer.
USED = ("files", r"/etc/ufw/user6?\.rules", "ufw writes its files in another form than they come in, once it was used")


# They were booted with our settings before: without the unit that udev starts for a cable of ifupdown's, which reset
# brings up itself, and with one of networkd's, which is done and over.
NEXT_BOOT = ("active", r"ifup@.*\.service|systemd-network-generator\.service", "as before with the next boot")


def test_reset_gives_them_back_as_they_were(virgin):
    """Server and client of NFS, and the addresses of all, each over the connection that it changes."""
    assert virgin, "the lab was not bare when these tests first saw it"
    LAB.playbook("playbooks/reset.yml", "-e", f"sure=true remove_data=true remove_data_really={SHARE}")
    assert_as_before(virgin, USED, NEXT_BOOT)
    assert inside(HEAD, f"ls -A {SHARE}") == ""


def test_and_so_they_boot(virgin):
    for node in virgin:
        LAB.command("kill", "--off", node)
        LAB.command("start", node)
    assert_as_before(virgin, USED)


def assert_as_before(virgin: dict[str, dict], *explained: tuple[str, str, str]) -> None:
    known = (*EXPLAINED, *explained)
    found = {node: differences(before, look(node), explained=known) for node, before in virgin.items()}
    assert not any(found.values()), json.dumps(found, indent=1)
