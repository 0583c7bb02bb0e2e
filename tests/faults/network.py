"""Faults of the network."""

from __future__ import annotations

from tests.faults.case import Case, Struck


def cable_pulled(case: Case) -> Struck:
    case.cluster.lab.command("cable", "node3", "down")
    yield
    case.sleep_until(case.cluster.job["timeout_step"] + 10)
    case.cluster.lab.command("cable", "node3", "up")


def one_way(case: Case) -> Struck:
    """node3 hears nothing more from node2, which hears it, and both hear all others. Longer than the group's timeout:
    as long as two members cannot talk, no group of three can be made."""
    rule = f"INPUT --source {case.cluster.addresses['node2']} --jump DROP"
    case.sh("node3", f"iptables --insert {rule}")
    case.later(lambda: case.sh("node3", f"iptables --delete {rule}", check=False))
    yield
    case.sleep_until(case.cluster.job["timeout_step"] + 25)
    case.sh("node3", f"iptables --delete {rule}")


def bandwidth_down(case: Case) -> Struck:
    """Until the job has ended."""
    case.cluster.lab.command("bandwidth", "node3", "10mbit")
    yield
