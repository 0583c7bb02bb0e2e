"""The fault matrix: one case, without nodes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.faults.case import Case, Fault, Struck
from tests.faults.cluster import JOB
from tests.faults.verdict import Facts


class NoCluster:
    """In place of the nodes: keeps what is asked of them."""

    nodes, head, job, slower = ("node1", "node2", "node3"), "node1", JOB, 1

    def __init__(self):
        self.done: list[str] = []

    def __getattr__(self, name):
        def answer(*words, **_):
            self.done.append(f"{name} {' '.join(map(str, words))}".strip())
            return {"watch": {"step": 0, "workers": [1], "held": 7}, "busy": {}, "everywhere": {}}.get(name, "")

        return answer


def cut(case: Case) -> Struck:
    case.sh("node3", "cut")
    case.later(lambda: case.sh("node3", "mend at the end"))
    yield
    case.sh("node3", "mend")


@pytest.fixture
def tried(tmp_path, monkeypatch):
    def run(moments: str, strike=cut) -> tuple[list[str], list[Facts]]:
        monkeypatch.setattr("tests.faults.case.FOLDER", tmp_path)
        monkeypatch.setattr("tests.faults.case.secrets.token_hex", lambda _: "ab12")
        monkeypatch.setattr("tests.faults.case.json.loads", lambda text: {"nodes": ["node2"]})
        cluster = NoCluster()
        training = SimpleNamespace(failed=lambda: "", give_up=lambda: None)
        monkeypatch.setattr(Case, "train", lambda case: (cluster.done.append("train"), case.trainings.append(training)))
        facts = Case(cluster, Fault(number=1, name="cut", what="", strike=strike), moments.split("+")).run()
        return [line for line in cluster.done if line.split()[0] in ("train", "sh", "ended", "put_right")], facts

    return run


def test_a_case_strikes_lets_the_writer_go_mends_and_puts_right(tried):
    done, (facts,) = tried("save")
    assert done[0] == "train"
    order = [
        "sh node3 cut",
        "sh node2 kill -CONT 7",
        "sh node3 mend",
        "ended cut-save-ab12 420",
        "sh node3 mend at the end",
    ]
    assert done[1:7] == [*order, "put_right"] and facts.problems == [] and facts.began < facts.hit


def test_a_lab_that_breaks_afterwards_ends_one_case_and_not_the_matrix(tried, monkeypatch):
    def broken(cluster) -> None:
        raise TimeoutError("node3 does not answer SSH")

    monkeypatch.setattr(NoCluster, "put_right", broken, raising=False)
    _, (facts,) = tried("mid")
    assert facts.problems == ["TimeoutError: node3 does not answer SSH"]


def test_a_job_that_is_taken_up_again_is_seen(tried, monkeypatch):
    """By a node that was off when the job ended, and has booted since."""
    ended = {"state": "done", "step": JOB["steps"], "run_id": "cut-1"}
    monkeypatch.setattr(NoCluster, "ended", lambda *_: {"nodes": ["node2"], **ended}, raising=False)
    _, (facts,) = tried("mid")
    assert len(facts.problems) == 1 and facts.problems[0].startswith("it was taken up again after its end: {'run_id'")


def test_a_fault_that_breaks_is_mended_all_the_same(tried):
    def broken(case: Case) -> Struck:
        yield from cut(case)
        raise RuntimeError("the lab is gone")

    done, (facts,) = tried("mid", broken)
    assert facts.problems == ["RuntimeError: the lab is gone"]
    assert done[-2:] == ["sh node3 mend at the end", "put_right"]


def test_one_job_is_hit_at_two_moments(tried):
    done, facts = tried("before+mid")
    assert [line for line in done if line.startswith("sh node3")] == [
        "sh node3 cut", "sh node3 mend", "sh node3 cut", "sh node3 mend", "sh node3 mend at the end",
        "sh node3 mend at the end",
    ]  # fmt: skip
    assert done.count("train") == 1
    assert [fact.problems for fact in facts] == [[], []]
    assert facts[0].began < facts[0].hit <= facts[1].began < facts[1].hit


def test_a_moment_that_did_not_come_has_no_time(tried):
    def broken(case: Case) -> Struck:
        raise RuntimeError("the lab is gone")
        yield

    _, facts = tried("before+mid", broken)
    assert [(fact.began > 0, fact.hit) for fact in facts] == [(True, 0.0), (False, 0.0)]
    assert facts[1].problems == ["RuntimeError: the lab is gone"]
