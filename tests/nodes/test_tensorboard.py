"""tensorboard: on the head, on one address, and it answers those whom it should."""

import ipaddress
import json

import pytest

ASK = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1] + '/data/runs', timeout=20).read().decode())"


@pytest.fixture
def url(told):
    if not told.tensorboard["enabled"]:
        pytest.skip("tensorboard_enabled: false")
    return f"http://{told.tensorboard['address']}:{told.tensorboard['port']}"


def test_tensorboard_listens_on_the_head_only_and_on_one_address(host, told, name, url):
    listening = [line.split()[3] for line in host.check_output("ss --no-header -ltn").splitlines()]
    at_the_port = [address for address in listening if address.endswith(f":{told.tensorboard['port']}")]
    assert at_the_port == ([url.removeprefix("http://")] if name == told.head else [])


def test_tensorboard_the_unit_is_enabled_and_valid(host, told, name, url):
    if name != told.head:
        pytest.skip("TensorBoard is the head's")
    board = host.service("minos-tensorboard")
    assert board.is_running and board.is_enabled
    verified = host.run("systemd-analyze verify --man=no /etc/systemd/system/minos-tensorboard.service")
    assert (verified.rc, verified.stderr) == (0, "")


def test_tensorboard_the_unit_admits_whom_the_owner_names(host, told, name, url):
    if name != told.head:
        pytest.skip("TensorBoard is the head's")
    shown = host.check_output("systemctl show --property=IPAddressAllow,IPAddressDeny minos-tensorboard")
    settings = dict(line.split("=") for line in shown.splitlines())
    others = set()
    if told.tensorboard["address"] != "127.0.0.1":
        named = [*told.members.values(), *told.tensorboard["from"]]
        others = {str(ipaddress.ip_network(each)) for each in named if each != "any"}
        others |= {"0.0.0.0/0", "::/0"} if "any" in named else set()
    assert set(settings["IPAddressDeny"].split()) == {"0.0.0.0/0", "::/0"}
    assert set(settings["IPAddressAllow"].split()) == {"127.0.0.0/8", "::1/128"} | others


def test_tensorboard_shows_the_jobs(host, told, name, url):
    """To the head, and to the other members where it is on the network."""
    if name != told.head and told.tensorboard["address"] == "127.0.0.1":
        pytest.skip("it is seen from the head alone, or through SSH")
    files = host.run("ls %s/jobs/*/tensorboard/events.out.*", told.shared_path).stdout
    written = {line.rpartition("/")[0].removeprefix(f"{told.shared_path}/jobs/") for line in files.splitlines()}
    runs = set(json.loads(host.check_output("python3 -c %s %s", ASK, url)))
    assert bool(runs & written) == bool(written), f"of {sorted(written)} it shows {sorted(runs)}"
