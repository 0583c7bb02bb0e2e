"""Jobs that run there now, and would lose each other if an address changed under them."""

from __future__ import annotations

from collections.abc import Iterator

from .answer import Answer, Asked, Finding, error

AT_WORK = ("active", "activating", "reloading", "deactivating")


def running(answer: Answer) -> list[str]:
    """Return the names of the jobs whose units are at work there, if only to save before they stop."""
    states = (line.split(" ") for line in answer.lines("jobs"))
    return [job for job, state, *_ in states if state in AT_WORK]


def check(answer: Answer, asked: Asked) -> Iterator[Finding]:
    for line in answer.lines("jobs"):
        job, state, store, address = [*line.split(" "), "", "", ""][:4]
        if state not in ("active", "activating", "reloading"):
            continue
        stop = f"stop it first (ansible-playbook playbooks/stop.yml -e job={job}), or write the old address again"
        if asked.store and store and store != asked.store:
            yield error(f"job {job} is running with the store at {store}, and the inventory says {asked.store}: {stop}")
        if asked.wanted and address and address != asked.wanted:
            yield error(f"job {job} is running at {address}, and the inventory says {asked.wanted}: {stop}")
