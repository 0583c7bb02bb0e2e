"""Faults of whole machines: power, reboots, and their clock."""

from __future__ import annotations

import time

from tests.faults.case import Case, Struck


def power_returns(case: Case) -> Struck:
    case.cluster.power(["node3"], on=False)
    yield
    case.sleep_until(20)
    case.cluster.power(["node3"], on=True)


def power_lost(case: Case) -> Struck:
    """For ever, as far as the job is concerned; afterwards the node must not take it up again."""
    case.cluster.power(["node3"], on=False)
    yield


def two_nodes_lost(case: Case) -> Struck:
    case.cluster.power(["node2", "node3"], on=False)
    yield


def _rebooted(case: Case, nodes: list[str]) -> Struck:
    before = case.cluster.boots()
    case.cluster.reboot(nodes)
    yield
    case.cluster.wait_for_boot(nodes, before)
    case.boot = time.time() - case.began


def head_rebooted(case: Case) -> Struck:
    return _rebooted(case, [case.cluster.head])


def all_rebooted(case: Case) -> Struck:
    return _rebooted(case, case.cluster.nodes)


def clock_set_back(case: Case) -> Struck:
    """Until the job has ended; at each moment by an hour more."""

    def behind() -> int:
        head, other = (int(case.sh(node, "date +%s")) for node in ("node1", "node2"))
        return head - other

    def mend() -> None:
        back = behind() - before
        case.expect(back > 3500, f"the clock was only {back} s behind at the end of the job")
        case.sh("node2", f"date --set=@$(( $(date +%s) + {back} ))")
        if case.times[0][0] == began:  # chrony would mend the rest at once
            case.sh("node2", "systemctl start chrony")

    before, began = behind(), case.began
    case.sh("node2", "systemctl stop chrony; date --set='-1 hour'")
    case.later(mend)
    yield
