"""What train.yml finds on the nodes of a job that runs: whose settings count, and whom it may take in."""

from __future__ import annotations

import pytest
from rendering import asserted, evaluated

STATE = {"state": "running", "run_id": "r2"}


def found(first: str, code: str = "/code-a") -> dict[str, object]:
    """Of the look at one node: its unit and the start that its settings are of, and their code."""
    return {"__job_check_found": {"stdout_lines": [first, "0", "2", "lan0", "", "", "", code, "ready"]}}


def asked(name: str, **looks: dict[str, object]) -> object:
    hosts = {"ansible_play_hosts": list(looks), "hostvars": looks}
    own = looks.get("node1", found("off"))
    plan = {"nodes": list(looks), "job": "demo"}
    return evaluated("job_check", name, job_check_plan=plan, job_check_state=STATE, **hosts, **own)


@pytest.mark.parametrize(
    ("first", "settled"),
    [("active r2", True), ("off r2", True), ("active r1", False), ("off r1", False), ("off ", False), ("off", False)],
)
def test_a_node_keeps_the_settings_of_the_start_that_runs_also_where_it_has_given_up(first, settled):
    assert asked("__job_check_settled", node1=found(first)) is settled


def test_the_code_of_a_job_is_that_of_the_nodes_that_train():
    looks = {"node1": found("off", ""), "node2": found("active r2", "/code-a"), "node3": found("active r1", "/code-b")}
    assert asked("__job_check_runs", **looks) is True
    assert asked("__job_check_codes", **looks) == ["/code-a"]
    assert asked("__job_check_codes", node1=found("off")) == []


@pytest.mark.parametrize(
    ("planned", "state", "nodes", "runs", "passes"),
    [
        (["node1", "node2"], "running", ["node1", "node2"], False, True),
        (["node1"], "running", ["node1", "node2"], False, True),  # all that could be at work are asked
        (["node1"], "running", ["node1", "node2"], True, False),
        (["node1", "node3"], "running", ["node1", "node2"], False, False),
        (["node1", "node3"], "starting", ["node2"], False, False),
        (["node1", "node3"], "failed", ["node2"], False, True),
    ],
)
def test_a_job_that_may_be_at_work_on_nodes_that_are_not_asked_is_not_taken_over(planned, state, nodes, runs, passes):
    plan, now = {"job": "demo", "nodes": nodes}, {"state": state, "planned_nodes": planned}
    name = "Refuse to change the nodes of a running job"
    told = {"job_check_plan": plan, "job_check_state": now, "__job_check_runs": runs}
    assert asserted("job_check", "main", name, **told) is passes
