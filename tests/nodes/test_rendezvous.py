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
    assert at_the_port == ([f"{told.head_address}:{told.store_port}"] if name == told.head else [])


def test_rendezvous_the_unit_is_enabled_and_valid(host, told, name):
    if name != told.head:
        pytest.skip("the store is the head's")
    store = host.service("minos-store")
    assert store.is_running and store.is_enabled
    verified = host.run("systemd-analyze verify --man=no /etc/systemd/system/minos-store.service")
    assert (verified.rc, verified.stderr) == (0, "")


def test_rendezvous_serves_this_node(host, told, name):
    meet = host.run(
        "runuser -u %s -- env OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 %s/bin/python -c %s %s %s %s",
        told.user, told.env_path, MEET, told.head_address, str(told.store_port), name,
    )  # fmt: skip
    assert (meet.rc, meet.stdout.strip()) == (0, "met"), meet.stderr
