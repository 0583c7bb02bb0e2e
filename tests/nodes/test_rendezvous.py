"""rendezvous: the store runs on the head, on its cluster address only, and serves every member."""

import pytest

MEET = """
import sys
from datetime import timedelta
from torch.distributed import TCPStore
store = TCPStore(sys.argv[1], int(sys.argv[2]), is_master=False, timeout=timedelta(seconds=10))
key = "minos-check-" + sys.argv[3]
store.set(key, "met")
print(store.get(key).decode())
store.delete_key(key)
"""


def test_rendezvous_the_store_listens_on_the_head_only(host, told, name):
    listening = [line.split()[3] for line in host.check_output("ss --no-header -ltn").splitlines()]
    at_the_port = [address for address in listening if address.endswith(f":{told.store_port}")]
    assert at_the_port == ([f"{told.store_address}:{told.store_port}"] if name == told.head else [])


def test_rendezvous_the_unit_is_enabled_and_valid(host, told, name):
    if name != told.head:
        pytest.skip("the store is the head's")
    store = host.service("minos-store")
    assert store.is_running and store.is_enabled
    verified = host.run("systemd-analyze verify --man=no /etc/systemd/system/minos-store.service")
    assert (verified.rc, verified.stderr) == (0, "")


def test_rendezvous_the_unit_admits_the_members_only(host, told, name):
    if name != told.head:
        pytest.skip("the store is the head's")
    shown = host.check_output("systemctl show --property=IPAddressAllow,IPAddressDeny minos-store")
    settings = dict(line.split("=") for line in shown.splitlines())
    members = {f"{address}/32" for address in told.members.values()} if len(told.members) > 1 else set()
    assert set(settings["IPAddressDeny"].split()) == {"0.0.0.0/0", "::/0"}
    assert set(settings["IPAddressAllow"].split()) == {"127.0.0.0/8", "::1/128"} | members


def test_rendezvous_the_kernel_keeps_strangers_out_by_itself(host, told, name):
    """Without the firewall: from an address of this very machine that is no member's."""
    if name != told.head or len(told.members) == 1:
        pytest.skip("the store is the head's, and on loopback in a cluster of one")
    if host.run("systemd-detect-virt --container").rc == 0:
        pytest.skip("a container may not load the kernel's filter (BPF); on a machine this is checked")
    connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 4, (sys.argv[3], 0))"
    stranger, python = "198.51.100.77", f"python3 -c '{connect}' {told.store_address} {told.store_port}"
    host.check_output(f"ip address add {stranger}/32 dev lo")
    try:
        assert host.run(f"{python} {told.address}").rc == 0
        assert "timed out" in host.run(f"{python} {stranger}").stderr
    finally:
        host.run(f"ip address del {stranger}/32 dev lo")


def test_rendezvous_serves_this_node(host, told, name):
    meet = host.run(
        "runuser -u %s -- env OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 %s/bin/python -c %s %s %s %s",
        told.user, told.env_path, MEET, told.store_address, str(told.store_port), name,
    )  # fmt: skip
    assert (meet.rc, meet.stdout.strip()) == (0, "met"), meet.stderr
