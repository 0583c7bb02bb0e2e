"""Faults of disks and of the shared directory: full, or away."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.case import Case, Struck
from tests.faults.cluster import LOCAL, SHARE_SIZE, as_root

# A file system in memory is full when it may not grow any more: no need to fill it. What is written meanwhile makes the
# size too small, and the next try takes the new one.
SHRINK = """for try in 1 2 3 4 5 6 7 8 9 10; do
used=$(df --output=used -k {path} | tail -1 | tr -d ' ')
mount -o remount,size=${{used}}k {path} 2>/dev/null && exit 0
done; exit 1"""


def share_full(case: Case) -> Struck:
    share = str(case.cluster.share)

    def room() -> None:
        as_root("mount", "-o", f"remount,size={SHARE_SIZE}", share)

    case.later(room)
    as_root("sh", "-c", SHRINK.format(path=share))
    yield
    mend_when_told(case, room)


def own_file_system(case: Case) -> None:
    """The job's folder on the first node becomes a disk of its own, before the job comes."""
    folder = f"{LOCAL}/{case.job}"
    mount = f"mount -t tmpfs -o size=512m,uid=2600,gid=2600,mode=750 minos-faults {folder}"
    case.sh(case.cluster.head, f"install -d -o 2600 -g 2600 {folder} && {mount}")


def local_full(case: Case) -> Struck:
    folder, head = f"{LOCAL}/{case.job}", case.cluster.head
    case.sh(head, SHRINK.format(path=folder))
    yield
    mend_when_told(case, lambda: case.sh(head, f"mount -o remount,size=512m {folder}"))


def mend_when_told(case: Case, room: Callable[[], None]) -> None:
    """Make room once the job has said what is wrong, as its owner would; one that failed for it is started again."""
    told = case.cluster.watch(case.cluster.head, case.job, "said", "alarm: ", patience=60)
    if told:
        case.notes.append(f"it said: {told['said'][:100]}")
    state = case.cluster.watch(case.cluster.head, case.job, "ended", patience=1)
    failed = bool(state) and state["state"]["state"] == "failed"
    case.expect(told or failed, "no word about the full disk within a minute")
    room()
    if failed:
        case.notes.append(f"failed ({state['state'].get('reason', '')[:100]}), and was started again")
        case.train().wait()


def nfs_stopped(case: Case) -> Struck:
    """Rank 0, which writes, is on the head: where that is the server, too, nobody misses anything."""
    server, head = case.cluster.server, case.cluster.head
    case.expect(server != head, "the head is the server itself: make the lab with --server node3")
    case.sh(server, "systemctl stop nfs-server")
    case.later(lambda: case.sh(server, "systemctl start nfs-server"))
    yield
    if case.moment != "before":  # until its first step it has nothing to write
        told = case.cluster.watch(head, case.job, "said", "alarm: ", patience=100 / case.cluster.slower)
        case.expect(told, "no word about the share that does not answer")
        case.notes.append(f"it said: {told['said'][:100]}" if told else "it said nothing")
    case.sleep_until(120)
    case.sh(server, "systemctl start nfs-server")
