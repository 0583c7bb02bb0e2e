"""Whom the store's unit admits, whatever the firewall says."""

import pytest
from rendering import rendered


@pytest.mark.parametrize("members", [[], ["10.0.0.1", "10.0.0.2"], {"node1": "10.0.0.1"}.values()])
def test_the_machine_itself_is_always_admitted(members):
    """An empty IPAddressAllow= would take back the one of the unit before it."""
    text = rendered("rendezvous", "members.conf.j2", rendezvous_members=members)
    assert f"IPAddressAllow={' '.join(['localhost', *members])}" in text.splitlines()
