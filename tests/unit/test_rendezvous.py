"""Whom the store's unit admits, whatever the firewall says."""

import pytest
from rendering import asserted, rendered


@pytest.mark.parametrize("members", [[], ["10.0.0.1", "10.0.0.2"], {"node1": "10.0.0.1"}.values()])
def test_the_machine_itself_is_always_admitted(members):
    """An empty IPAddressAllow= would take back the one of the unit before it."""
    text = rendered("rendezvous", "members.conf.j2", rendezvous_members=members)
    assert f"IPAddressAllow={' '.join(['localhost', *members])}" in text.splitlines()


CHANGED, SAME = {"changed": True}, {"changed": False}


@pytest.mark.parametrize(
    ("jobs", "file", "unit", "goes_on"),
    [
        ([], CHANGED, CHANGED, True),
        (["demo"], SAME, SAME, True),
        (["demo"], CHANGED, SAME, False),
        (["demo"], SAME, CHANGED, False),
    ],
)
def test_the_store_is_not_restarted_under_a_job(jobs, file, unit, goes_on):
    known = {"__rendezvous_file": file, "__rendezvous_unit": unit, "rendezvous_jobs": jobs}
    assert asserted("rendezvous", "main", "Refuse to restart it under a job", **known) is goes_on
