"""What the verbs decide and say, and how a result travels: their functions alone, without nodes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys

import pytest
from ansible.template import trust_as_template
from paths import ROOT, action_plugin
from rendering import SHARED, evaluated

NODES = ("node1", "node2", "node3")

resume = action_plugin("job_resume", "plan_resume")
export = action_plugin("job_export", "export_job")
stop = action_plugin("job_stop", "show_stop")
status = action_plugin("job_status", "show_status")
clean = action_plugin("job_clean", "plan_clean")


def test_why_a_job_failed_and_what_to_do():
    failed = {"job": "demo", "state": "failed", "reason": "disk", "failed_node": "node2", "advice": "make room"}
    assert list(status.notes_of(failed)) == ["demo: failed (node2): disk"]
    known = failed | {"cause": "a disk is full"}
    assert list(status.notes_of(known)) == ["demo: failed (node2): disk; likely: a disk is full. Do: make room"]


def look(*, ready=True, unit="inactive", other="", problem="", share="", store="10.0.0.1:29500"):
    units = {"demo": {"active": unit}} | ({other: {"active": "active"}} if other else {})
    answer = {"units": units, "settings": {"demo": {"nnodes": "1:3", "ready": ready, "store": store}}}
    answer |= {"share": share}
    return {"answer": {} if problem else answer, "problem": problem}


def planned(state="stopped", active=(), **nodes):
    demo = {"job": "demo", "state": state, "step": 5, "steps": 9, "planned_nodes": list(NODES)}
    return resume.plan(demo, {name: look() for name in NODES} | nodes, "node1", "10.0.0.1:29500", list(active))


def test_a_stopped_job_goes_on_on_the_nodes_that_answer():
    assert planned() == (["node1", "node2", "node3"], 1)
    assert planned("failed", node2=look(problem="it does not answer")) == (["node1", "node3"], 1)
    assert planned("running") == (["node1", "node2", "node3"], 1), "its units are gone"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"state": "done"}, "there is nothing to go on with"),
        ({"state": "running", "active": ["node2"]}, "it is at work on node2"),
        ({"state": "stopped", "active": ["node2"]}, "its last start is not over on node2"),
        ({"node1": look(problem="it does not answer")}, "node1, the head: it does not answer"),
        ({"node1": look(share="hangs")}, "node1, the head: its shared directory: hangs"),
        ({"node3": look(ready=False)}, "node3 lacks its settings, code or config: start it with train.yml"),
        ({"node3": look(store="10.0.0.2:29500")}, "at 10.0.0.2:29500, but it is at 10.0.0.1:29500 now: start it with"),
        ({"node3": look(other="other")}, "node3 trains job other: playbooks/stop.yml -e job=other"),
    ],
)
def test_a_job_that_cannot_be_resumed(given, reason):
    with pytest.raises(ValueError, match=reason):
        planned(**given)


def test_nothing_is_cleaned_through_a_head_whose_share_hangs():
    """Another node reads it, but the head would be held for as long as its own mount is."""
    old = {"state": {"state": "done"}, "written": 0, "checkpoint": None, "figures": None}
    reader = look(share="answers")
    reader["answer"] |= {"time": 0, "jobs": {"old": old}}
    assert clean.plan({"node1": look(), "node2": reader}, "old", "2", False, "node1")[:2] == (["old"], [])
    with pytest.raises(ValueError, match=r"node1, the head: its shared directory: hangs\. Nothing was removed"):
        clean.plan({"node1": look(share="hangs"), "node2": reader}, "old", "2", False, "node1")


def test_too_few_nodes_answer():
    two = {"answer": look()["answer"] | {"settings": {"demo": {"nnodes": "3:3", "ready": True}}}, "problem": ""}
    with pytest.raises(ValueError, match=r"needs 3 of node1, node2, node3\. node2: it is off"):
        planned(node1=two, node2=look(problem="it is off"), node3=two)


def pieces(folder, files, count):
    """What read_piece.py gives, run as on a node."""
    at = 0
    program = ROOT / "roles/job_export/files/read_piece.py"
    while at < sum(file.size for file in files):
        asked = {"folder": str(folder), "count": count, **export.piece_at(files, at)}
        command = [sys.executable, program, json.dumps(asked)]
        piece = base64.b64decode(json.loads(subprocess.check_output(command, text=True))["piece"])
        at += len(piece)
        yield piece


def test_a_result_of_many_files_is_asked_for_by_a_few_at_a_time():
    """All of their names would not fit into one command."""
    files = [export.Wanted(f"images/{number:032d}.png", number % 3, "") for number in range(5000)]
    at, total, seen = 0, sum(file.size for file in files), []
    while at < total:
        asked = export.piece_at(files, at)
        assert 0 < len(asked["files"]) <= export.MOST
        assert 0 <= asked["at"] < asked["files"][0][1]
        seen += asked["files"]
        at += sum(size for _, size in asked["files"]) - asked["at"]
    assert [name for name, size in seen if size] == [file.name for file in files if file.size]


def test_files_travel_in_pieces_that_do_not_mind_their_borders(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MOST", 2)
    monkeypatch.setattr(export, "PIECE", 10)
    contents = {"a": b"", "b/c": os.urandom(25), "d": os.urandom(10), "e": b"x"}
    for name, content in contents.items():
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_bytes(content)
    files = [export.Wanted(n, len(c), hashlib.sha256(c).hexdigest()) for n, c in contents.items()]
    export.fetch(tmp_path / "here", files, pieces(tmp_path / "there", files, 10))
    assert {name: (tmp_path / "here" / name).read_bytes() for name in contents} == contents
    assert export.missing(tmp_path / "here", files) == []
    (tmp_path / "here/d").write_bytes(b"other")
    assert [file.name for file in export.missing(tmp_path / "here", files)] == ["d"]


def test_a_file_that_changes_on_its_way_is_not_taken(tmp_path):
    file = export.Wanted("a", 3, hashlib.sha256(b"abc").hexdigest())
    for arrived in (b"abd", b"ab"):
        with pytest.raises(ValueError, match="a: what has arrived does not match its hash"):
            export.fetch(tmp_path, [file], iter([arrived]))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no path within"):
        export.missing(tmp_path, [file._replace(name="../a")])


def test_a_stop_that_the_head_cannot_record_fails():
    units = {
        "node1": {"answer": {}, "problem": "it does not answer"},
        "node2": {"answer": {"was": "active"}, "problem": ""},
    }
    lines, fine = stop.stopped("demo", "node1", {"answer": {}, "problem": "it does not answer"}, {}, units)
    assert not fine and "The units of node2 are stopped" in lines[0] and "once node1 answers" in lines[0]


def test_a_stop_that_cannot_be_written_down_says_why():
    units = {"node1": {"answer": {"was": "active"}, "problem": ""}}
    asked = {"answer": {"asked": True, "state": {"state": "running", "step": 3}}, "problem": ""}
    recorded = {"answer": {}, "problem": "OSError: [Errno 28] No space left on device"}
    lines, fine = stop.stopped("demo", "node1", asked, recorded, units)
    assert not fine and lines[0].startswith(
        "That job demo is stopped could not be written down: node1, the head: OSError"
    )
    assert "The units of node1 are stopped." in lines[0] and "is running" not in lines[0]
    recorded = {"answer": {"state": {"state": "stopped", "step": 3, "steps": 9}}, "problem": ""}
    assert stop.stopped("demo", "node1", asked, recorded, units) == (["Job demo is stopped at step 3 of 9."], True)


@pytest.mark.parametrize(
    ("role", "name", "given"),
    [
        ("job_clean", "job_clean_sure", "sure"),
        ("job_clean", "job_clean_everything", "everything"),
        ("job_logs", "job_logs_everything", "all"),
        ("reset_ask", "reset_ask_sure", "sure"),
        ("reset_ask", "reset_ask_remove_data", "remove_data"),
        ("reset", "reset_remove_data", "remove_data"),
    ],
)
@pytest.mark.parametrize("word", ["false", "no", "False"])
def test_a_switch_that_is_off_is_off(role, name, given, word):
    """`-e sure=false` comes as a text, and a text that is not empty is true."""
    assert evaluated(role, name, **{name: trust_as_template(SHARED[name]), given: word}) is False
