"""Faults of single processes: a worker, an agent, the store; and a checkpoint that cannot be read after one of them."""

from __future__ import annotations

import time

from tests.faults.case import Case, Struck
from tests.faults.cluster import AS_USER, JOBS, LOCAL


def signal_worker(case: Case, name: str, node: str) -> None:
    case.expect(case.cluster.watch(node, case.job, "signal", name, patience=20), f"{node} had no worker to hit")


def worker_killed(case: Case) -> Struck:
    signal_worker(case, "KILL", case.victim())
    yield


def worker_stopped(case: Case) -> Struck:
    """For ever: nobody sends it SIGCONT."""
    signal_worker(case, "STOP", case.victim("node3"))
    yield


def agent_killed(case: Case) -> Struck:
    unit = f"minos-train@{case.job}.service"
    case.sh(case.victim(), f"kill -9 $(systemctl show --property=MainPID --value {unit})")
    yield


def store_killed(case: Case) -> Struck:
    case.sh(case.cluster.head, "systemctl kill --signal=KILL minos-store.service")
    yield


def unit_stopped(case: Case) -> Struck:
    """By hand, on one node: it leaves, the others go on. Without waiting: it may have to save first."""
    case.sh(case.victim("node3"), f"systemctl stop --no-block minos-train@{case.job}.service")
    yield


TRUNCATE = "truncate --size=-1000 $file"
# A byte in the middle becomes its opposite, as on a disk that forgets.
FLIP = """python3 -c '
import sys
with open(sys.argv[1], "r+b") as file:
    at = file.seek(0, 2) // 2
    file.seek(at)
    byte = file.read(1)[0]
    file.seek(at)
    file.write(bytes([byte ^ 255]))' $file"""


def damage(files: str, how: str) -> str:
    """The shell command that damages what `files` prints, and gives each back its times."""
    kept = f"touch --reference=$file /tmp/before; {how}; touch --reference=/tmp/before $file"
    return f"for file in $({files}); do {kept}; done"


def damage_newest(case: Case, how: str) -> str:
    """Damage every copy of the newest checkpoint, on the share and on the nodes' disks; its name. The files keep their
    times."""
    local, shared = f"{LOCAL}/{case.job}/checkpoints", f"{JOBS}/{case.job}/checkpoints"
    names = case.cluster.everywhere(f"{AS_USER} find {shared} {local} -name 'step-*' -printf '%f\\n' 2>/dev/null")
    newest = max(name for text in names.values() for name in text.split())
    for node in case.cluster.nodes:
        places = f"{shared} {local}" if node == case.cluster.head else local  # the share's once, not three times
        files = f"find {places} -path '*/{newest}/model.safetensors' 2>/dev/null"
        case.cluster.shared(damage(files, how), node=node)
    return newest


def _checkpoint_damaged(case: Case, how: str) -> Struck:
    if case.moment == "before":
        # Before the first step of a second start: there is nothing to read before that of the first.
        case.reach(7)
        stopped = case.cluster.lab.playbook("playbooks/stop.yml", "-e", f"job={case.job}", check=False)
        case.expect(stopped.returncode == 0, "playbooks/stop.yml failed")
        name = damage_newest(case, how)
        case.began = time.time()
        again = case.train()
        yield
        again.wait()
    else:
        signal_worker(case, "STOP", case.victim())  # all ranks wait for it: no newer checkpoint is made meanwhile
        name = damage_newest(case, how)
        case.began = time.time()
        signal_worker(case, "KILL", case.victim())
        case.release("KILL")  # it would complete a newer one, as it may
        yield
    refused = case.cluster.watch(case.cluster.head, case.job, "said", f"{name} skipped", patience=60)
    case.expect(refused, f"the damaged {name} was not seen to be refused")


def checkpoint_truncated(case: Case) -> Struck:
    return _checkpoint_damaged(case, TRUNCATE)


def checkpoint_flipped(case: Case) -> Struck:
    return _checkpoint_damaged(case, FLIP)
