"""The lab takes addresses that hide nothing the host reaches."""

import json
from ipaddress import IPv4Network

import pytest

from lab import subnets
from lab.config import LabError


def routes(*destinations: str) -> str:
    return json.dumps([{"dst": destination, "dev": "eth0"} for destination in destinations])


def test_a_free_host_gets_the_first_two():
    assert [str(n) for n in subnets.choose([], 2)] == ["10.213.64.0/24", "10.213.65.0/24"]


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("10.213.64.0/24", "10.213.65.0/24"),
        ("10.213.64.77", "10.213.65.0/24"),  # a route to a single host, as VPNs set it
        ("10.213.64.0/20", "10.213.80.0/24"),
        ("10.0.0.0/8", "172.29.192.0/24"),
    ],
)
def test_networks_of_the_host_are_left_alone(route, expected):
    assert str(subnets.choose(subnets.routed(routes("default", route)), 1)[0]) == expected


def test_default_routes_take_nothing():
    assert subnets.routed(routes("default", "0.0.0.0/1", "128.0.0.0/1")) == []


def test_broadcast_and_local_entries_count_as_routes():
    assert subnets.routed(routes("10.213.64.255")) == [IPv4Network("10.213.64.255/32")]


def test_a_name_server_behind_the_default_route_is_not_hidden():
    taken = subnets.nameservers("# comment\nsearch lan\nnameserver 10.213.64.53\nnameserver fd00::1\n")
    assert [str(n) for n in subnets.choose(taken, 1)] == ["10.213.65.0/24"]


def test_no_free_network_is_one_clear_line():
    with pytest.raises(LabError, match="no free private /24"):
        subnets.choose(subnets.routed(routes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")), 1)
