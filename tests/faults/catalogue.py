"""The faults of the matrix, one row each, in the order of issue 6."""

from __future__ import annotations

import difflib

from tests.faults import disks, network, people, power, processes
from tests.faults.case import MOMENTS, Fault
from tests.faults.cluster import JOBS

FAULTS = [
    Fault(
        number=1,
        name="worker_killed",
        what="kill -9 of a worker",
        strike=processes.worker_killed,
        restarts=True,
        loss="worker",
    ),
    Fault(
        number=2,
        name="agent_killed",
        what="kill -9 of an agent",
        strike=processes.agent_killed,
        restarts=True,
        loss="loud",
    ),
    Fault(
        number=3,
        name="worker_stopped",
        what="SIGSTOP of a worker, for ever",
        strike=processes.worker_stopped,
        restarts=True,
        loss="hangs",
    ),
    Fault(
        number=4,
        name="power_returns",
        what="a node without power for 20 s",
        strike=power.power_returns,
        restarts=True,
        loss="silent",
    ),
    Fault(
        number=5,
        name="power_lost",
        what="a node without power for ever",
        strike=power.power_lost,
        restarts=True,
        left=2,
        loss="silent",
    ),
    Fault(
        number=6,
        name="two_nodes_lost",
        what="two nodes at once",
        strike=power.two_nodes_lost,
        restarts=True,
        left=1,
        loss="silent",
    ),
    Fault(
        number=7, name="head_rebooted", what="the head reboots", strike=power.head_rebooted, restarts=True, loss="boot"
    ),
    Fault(number=8, name="store_killed", what="kill -9 of the store", strike=processes.store_killed),
    Fault(
        number=9,
        name="cable_pulled",
        what="a cable out for 30 s",
        strike=network.cable_pulled,
        restarts=True,
        left=2,
        loss="silent",
    ),
    Fault(number=10, name="one_way", what="node3 does not hear node2 for 45 s", strike=network.one_way, restarts=True),
    Fault(number=11, name="bandwidth_down", what="a link of 10 Mbit/s", strike=network.bandwidth_down, restarts=False),
    Fault(
        number=12,
        name="nfs_stopped",
        what="the NFS server stopped for 2 minutes",
        strike=disks.nfs_stopped,
        restarts=False,
        kind="vm",
        because="containers have no NFS server of their own",
        saves_in=JOBS,
    ),
    Fault(
        number=13,
        name="share_full",
        what="the shared directory is full",
        strike=disks.share_full,
        restarts=False,
        small_share=True,
        saves_in=JOBS,
    ),
    Fault(
        number=14,
        name="local_full",
        what="the local disk is full",
        strike=disks.local_full,
        restarts=False,
        prepare=disks.own_file_system,
    ),
    Fault(
        number=15,
        name="checkpoint_truncated",
        what="the newest checkpoint is too short, and is read",
        strike=processes.checkpoint_truncated,
        restarts=True,
    ),
    Fault(
        number=15,
        name="checkpoint_flipped",
        what="bits of the newest checkpoint flip, and it is read",
        strike=processes.checkpoint_flipped,
        restarts=True,
    ),
    Fault(
        number=16,
        name="all_rebooted",
        what="all nodes reboot at once",
        strike=power.all_rebooted,
        restarts=True,
        loss="boot",
    ),
    Fault(
        number=17,
        name="unit_stopped",
        what="systemctl stop on one node",
        strike=processes.unit_stopped,
        restarts=True,
        left=2,
        loss="loud",
    ),
    Fault(
        number=18,
        name="train_interrupted",
        what="Ctrl-C at ten moments of train.yml",
        moments=("start",),
        strike=people.train_interrupted,
    ),
    Fault(
        number=19,
        name="started_twice",
        what="the same job by two train.yml",
        moments=tuple(MOMENTS),
        strike=people.started_twice,
        restarts=False,
        timed=False,
    ),
    Fault(
        number=19,
        name="two_jobs",
        what="another job on the same nodes",
        moments=tuple(MOMENTS),
        strike=people.two_jobs,
        restarts=False,
        timed=False,
    ),
    Fault(
        number=20,
        name="clock_set_back",
        what="a clock goes back an hour",
        strike=power.clock_set_back,
        restarts=False,
        kind="vm",
        because="containers have the clock of their host",
    ),
]


def chosen(faults: str = "", moments: str = "") -> list[tuple[Fault, list[str]]]:
    """The cases that these lists (A,B) name, all of them where they are empty. ValueError with what is misspelt.

    Moments with a plus between them (before+mid) are those of one case: its job is hit at the one, then at the other.
    """
    names = _known("FAULTS", faults, [fault.name for fault in FAULTS])
    _known("MOMENTS", moments.replace("+", ","), list(MOMENTS))
    times = [[word.strip() for word in group.split("+")] for group in moments.split(",") if group.strip()]
    return [
        (fault, case)
        for fault in FAULTS
        if fault.name in names
        for group in times or [[moment] for moment in fault.moments]
        if (case := [moment for moment in group if moment in fault.moments])
    ]


def _known(what: str, given: str, known: list[str]) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"write some of {', '.join(known)}"
            raise ValueError(f"{what}={given}: {name} is unknown; {hint}")
    return names or known
