"""The fault matrix: which faults there are, and which are chosen."""

from __future__ import annotations

import pytest

from tests.faults.catalogue import FAULTS, chosen


def test_every_fault_of_the_issue_is_there_at_its_three_moments():
    assert sorted({fault.number for fault in FAULTS}) == list(range(1, 21))
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all({"before", "mid", "save"} <= set(fault.moments) for fault in FAULTS if fault.number != 18)
    assert len(chosen()) == sum(len(fault.moments) for fault in FAULTS) > 60


def test_what_is_asked_for_is_chosen():
    assert [(fault.name, *moments) for fault, moments in chosen("store_killed, worker_killed", "mid,save")] == [
        ("worker_killed", "mid"), ("worker_killed", "save"), ("store_killed", "mid"), ("store_killed", "save"),
    ]  # fmt: skip
    joined = chosen("clock_set_back,train_interrupted", "before+save,mid")
    assert [moments for _, moments in joined] == [["before", "save"], ["mid"]], "Ctrl-C hits at the start alone"
    with pytest.raises(ValueError, match=r"FAULTS=worker_kiled: worker_kiled is unknown; did you mean worker_killed\?"):
        chosen("worker_kiled")
    for given in ("xyz", "mid+xyz"):
        with pytest.raises(ValueError, match=r"MOMENTS=.*: xyz is unknown; write some of start, before, mid, save"):
            chosen(moments=given)
