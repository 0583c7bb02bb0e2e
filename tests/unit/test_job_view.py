"""What the verbs make of the nodes' answers: the jobs, who does what for them, and what has happened."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import stat
import sys
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from paths import ROOT, action_plugin

sys.path.insert(0, str(ROOT / "roles/job_look"))

from job_view import document, figures
from job_view.events import events
from job_view.picture import find, has_workers, only_active, picture
from job_view.table import table

NOW = 1_800_000_000.0
STATE = {
    "job": "demo",
    "state": "running",
    "step": 50,
    "steps": 200,
    "loss": 2.34567,
    "heldout_first": 5.9,
    "heldout_last": 2.5,
    "tokens_per_s": 12345.6,
    "mean_step_seconds": 0.5,
    "nodes": ["node1", "node3"],
    "planned_nodes": ["node1", "node2", "node3"],
    "starts": 3,
    "run_id": "demo-1",
    "started": "2027-01-15T07:50:00+00:00",
    "updated": "2027-01-15T08:00:00+00:00",
}
FOUND = {
    "state": STATE,
    "written": NOW - 2,
    "began": NOW - 600,
    "checkpoint": {"step": 40, "time": NOW - 12},
    "figures": {"nodes": {"node1": {"seconds": 0.5, "gpu_utilisation": 0.97, "gpu_memory_gb": 10.2}}},
}
OFF = {"answer": {}, "problem": "it does not answer: switch it on"}


def answer(*, unit="active", share="answers", jobs=None, **more):
    units = {"demo": {"active": unit, "sub": "", "restarts": 1, "enabled": True}}
    said = {"time": NOW, "units": units, "settings": {}, "copies": {}, "gpus": [], "share": share, "jobs": jobs or {}}
    return {"answer": said | more, "problem": ""}


def looks(**nodes):
    return {"node1": answer(jobs={"demo": FOUND}), "node2": OFF, "node3": answer(share="")} | nodes


def demo(**nodes):
    return picture(looks(**nodes))["jobs"][0]


def test_a_job_and_what_each_node_does_for_it():
    job = demo()
    assert (job["state"], job["step"], job["restarts"], job["eta_seconds"]) == ("running", 50, 2, 75.0)
    assert job["checkpoint"] == {"step": 40, "age_seconds": 12.0}
    assert {name: node["does"] for name, node in job["nodes"].items()} == {
        "node1": "trains",
        "node2": "does not answer",
        "node3": "trains",
    }
    assert job["nodes"]["node1"]["gpu_utilisation"] == 0.97


@pytest.mark.parametrize(
    ("node2", "does"),
    [
        (answer(), "waits"),
        (answer(unit="activating"), "starts"),
        (answer(unit="deactivating"), "stops"),
        (answer(unit="inactive"), "is missing"),
        (answer(unit="failed"), "failed"),
    ],
)
def test_what_a_node_does_that_does_not_train(node2, does):
    assert demo(node2=node2)["nodes"]["node2"]["does"] == does


def test_a_node_that_gave_up_and_one_that_left_the_inventory():
    found = FOUND | {"state": STATE | {"given_up": ["node2"], "planned_nodes": ["node1", "node2", "node3", "node9"]}}
    nodes = demo(node1=answer(jobs={"demo": found}), node2=answer(unit="failed"))["nodes"]
    assert (nodes["node2"]["does"], nodes["node9"]["does"]) == ("gave up", "gone")


def test_another_node_reads_the_share_when_the_head_is_off_or_its_share_hangs():
    for head in (OFF, answer(share="hangs")):
        seen = picture(looks(node1=head, node3=answer(jobs={"demo": FOUND})))
        assert seen["problem"] == "" and [job["job"] for job in seen["jobs"]] == ["demo"]


def test_nobody_can_read_the_share():
    seen = picture(looks(node1=answer(share="hangs")))
    assert seen["jobs"] == []
    assert seen["problem"] == "the shared directory cannot be read: node1: hangs, node2: it does not answer"


def test_the_cards_of_somebody_elses_program():
    node1 = answer(jobs={"demo": FOUND | {"figures": None}}, gpus=[{"utilisation": 80.0, "memory_mb": 2000.0}] * 2)
    node = demo(node1=node1)["nodes"]["node1"]
    assert (node["gpu_utilisation"], node["gpu_memory_gb"]) == (0.8, 2.0)


def test_a_state_file_that_nobody_understands_is_one_job_among_the_others():
    jobs = {"demo": FOUND, "bad": {"problem": "/srv/minos/jobs/bad/state.json cannot be understood"}}
    seen = picture(looks(node1=answer(jobs=jobs)))
    assert {job["job"]: job["state"] for job in seen["jobs"]} == {"demo": "running", "bad": "unreadable"}


def test_the_job_that_is_meant():
    ended = {"state": STATE | {"state": "done"}, "written": NOW, "began": None, "checkpoint": None, "figures": None}
    seen = picture(looks(node1=answer(jobs={"demo": FOUND, "old": ended, "older": ended})))
    assert find(seen, "")["job"] == "demo"
    assert find(seen, "old")["state"] == "done"
    with pytest.raises(ValueError, match="job=nope: there is no such job; there are demo, old"):
        find(seen, "nope")
    with pytest.raises(ValueError, match="several jobs are done: write -e job=NAME, one of old"):
        find(seen, "", ("done",))
    with pytest.raises(ValueError, match="no job is failed"):
        find(seen, "", ("failed",))


def test_the_job_that_the_units_are_at_work_for_when_nobody_can_read_the_share():
    assert only_active(looks(node1=OFF)) == "demo"
    assert only_active(looks(node3=answer(unit="failed"), node1=OFF)) == ""
    other = {"units": {"other": {"active": "active"}}}
    assert only_active(looks(node2={"answer": other, "problem": ""})) == ""


def test_the_status_shows_jobs_nodes_and_what_needs_a_hand():
    show = action_plugin("job_status", "show_status")
    alarmed = FOUND | {"state": STATE | {"alarm": "the disk of node1 is full"}, "written": NOW - 95}
    failed = FOUND | {"state": STATE | {"state": "failed", "reason": "loss is nan", "failed_node": "node2"}}
    old = {f"old{at}": FOUND | {"state": STATE | {"state": "done", "started": ""}} for at in range(3)}
    lines = show.status(picture(looks(node1=answer(jobs={"demo": alarmed, "bad": failed, **old}))), 2)
    text = "\n".join(lines)
    words = [" ".join(line.split()) for line in lines]
    assert words[1] == "demo running 50/200 2.3457 2.5000 12,346 0:01:15 2 step 40, 12 s ago"
    assert "demo node1 trains 0.500 GPU 97% 10.2 GB 1 -" in words
    assert "demo node2 does not answer - - - - -" in words
    for note in (
        "demo: ALARM: the disk of node1 is full",
        "demo: no word for 0:01:35",
        "bad: failed (node2): loss is nan",
        "2 older ones: ansible-playbook playbooks/jobs.yml",
        "node2: it does not answer: switch it on",
    ):
        assert note in text
    assert "old1" not in text, "they are counted only"


def test_the_units_are_shown_where_nobody_can_read_the_share():
    """The head is off, which serves the share, too: the others know what they do, and what lies on their disks."""
    show = action_plugin("job_status", "show_status")
    node2 = answer(share="hangs", copies={"demo": {"step": 48, "time": NOW - 7}})
    seen = picture(looks(node1=OFF, node2=node2, node3=answer(unit="inactive", share="hangs")))
    assert seen["nodes"]["node2"]["units"]["demo"]["unit"] == "active"
    words = [" ".join(line.split()) for line in show.status(seen, 5)]
    assert words == [
        "Job Node Unit Unit restarts Own checkpoint",
        "demo node2 active 1 step 48, 7 s ago",
        "",
        "node1: it does not answer: switch it on",
        "the shared directory cannot be read: node1: it does not answer, node2: hangs, node3: hangs",
    ]
    assert show.status(picture({"node1": OFF}), 5)[0] == "node1: it does not answer: switch it on"


def test_the_history_has_the_newest_first():
    show = action_plugin("job_history", "show_history")
    done = {
        "state": "done",
        "started": "2027-01-15T07:00:00+00:00",
        "updated": "2027-01-15T07:10:05+00:00",
        "step": 200,
    }
    newer = STATE | done | {"started": "2027-01-15T07:05:00+00:00"}
    jobs = {name: FOUND | {"state": state} for name, state in {"one": STATE | done, "two": newer, "now": STATE}.items()}
    lines = show.history(picture({"node1": answer(jobs=jobs)}))
    assert [line.split()[0] for line in lines] == ["Job", "now", "two", "one"]
    assert "0:10:05" in lines[3] and "5.9000 to 2.5000" in lines[3] and lines[3].endswith("node1, node2, node3")


def happened(before, now):
    both = ({key: value for key, value in (STATE | state).items() if value is not None} for state in (before, now))
    return list(events(*both))


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"step": 60}, []),
        ({"nodes": ["node1", "node2", "node3"]}, {}, ["node2 lost, going on with 2 of 3"]),
        ({}, {"nodes": ["node3", "node1", "node2"]}, ["node2 is back, going on with 3 of 3"]),
        (
            {"nodes": ["node1", "node2"]},
            {},
            ["node2 lost, going on with 2 of 3", "node3 is back, going on with 2 of 3"],
        ),
        ({}, {"starts": 4, "resumed_at": 40, "step": 44}, ["restarted at step 40"]),
        ({"starts": None}, {"starts": 1, "resumed_at": 40}, []),
        ({}, {"run_id": "demo-2", "state": "starting"}, ["starting"]),
        ({"state": "starting", "starts": 1}, {"starts": 1, "resumed_at": 40}, ["goes on at step 40"]),
        ({}, {"alarm": "the disk is full"}, ["ALARM: the disk is full"]),
        ({"alarm": "the disk is full"}, {}, ["the alarm is over"]),
    ],
)
def test_what_has_happened(before, now, said):
    assert happened(before, now) == said


@pytest.mark.parametrize(("count", "workers"), [(0, True), (1, False), (2, True), (None, True)])
def test_an_agent_alone_has_no_workers(count, workers):
    look = {"answer": {"units": {"demo": {"active": "active", "processes": count}}}, "problem": ""}
    assert has_workers(look, "demo") is workers


def test_at_the_first_look_only_who_is_away_is_told():
    assert list(events({}, STATE)) == ["2 of 3 nodes train, without node2"]
    assert list(events({}, STATE | {"nodes": ["node1", "node2", "node3"]})) == []
    assert list(events({}, {})) == []


def test_a_table_is_plain_text_unless_colour_is_wanted():
    rows = [("demo", "running"), ("a-longer-name [red]x[/red]", "failed")]
    plain = table(("Job", ">State"), rows, colour=False)
    assert plain.splitlines() == [
        "Job                           State",
        "demo                        running",
        "a-longer-name [red]x[/red]   failed",
    ]
    assert "\x1b[" in table(("Job", ">State"), rows, colour=True)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (figures.age(3.4), "3 s ago"),
        (figures.age(600), "10 min ago"),
        (figures.age(86400), "24 h ago"),
        (figures.age(864000), "10 days ago"),
        (figures.age(None), "-"),
        (figures.duration(3725.4), "1:02:05"),
        (figures.size(999), "999 B"),
        (figures.size(1234567), "1.2 MB"),
        (figures.number(None, "{}"), "-"),
        (figures.number("12", "{}"), "-"),
        (figures.eta({"steps": 10}), "?"),
    ],
)
def test_figures_as_people_read_them(shown, text):
    assert shown == text


options = action_plugin("job_look", "check_options")
TAKES = {"job": "name", "lines": "number", "all": "switch", "output": "file", "to": "directory"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"job": "demo", "lines": 5, "all": "true", "to": "results", "cluster_user": "me", "ansible_user": "x"}, ""),
        ({"jbo": "demo"}, "-e jbo: nothing has this name; did you mean job? It takes job, lines, all, output, to"),
        ({"quantity": 3}, "-e quantity: nothing has this name; It takes job, lines, all, output, to"),
        ({"lines": "abc"}, "-e lines=abc: write a whole number, 1 or more"),
        ({"lines": 0}, "-e lines=0: write a whole number, 1 or more"),
        ({"all": "perhaps"}, "-e all=perhaps: write true or false"),
        ({"job": "../x"}, "-e job=../x: no job has such a name; playbooks/jobs.yml lists them"),
        (
            {"output": "/nowhere/x"},
            "-e output=/nowhere/x: write the path of a file in a directory that is there and that you may write to",
        ),
        (
            {"output": "/"},
            "-e output=/: write the path of a file in a directory that is there and that you may write to",
        ),
        ({"to": ""}, "-e to=: write the path of a directory on this machine"),
        (
            {"to": "my", "_raw_params": "results"},
            "-e ... results: a blank ends a value; quotes within the quotes keep it: -e \"to='my results'\"",
        ),
        (
            {"nnodes": 2},
            "-e nnodes: train.yml or another playbook takes this; here it would change nothing. "
            "It takes job, lines, all, output, to",
        ),
    ],
)
def test_what_a_verb_is_given_is_checked_before_any_node_is_asked(given, said):
    assert options.wrong(given, TAKES, {"cluster_user"}, {"nnodes"}) == said


def test_what_is_typed_is_for_this_command_and_a_file_for_several(tmp_path):
    words = options.words_of_commands()
    assert {"nnodes", "nccl_debug", "keep", "script", "group", "nproc_per_node", "to", "job"} <= words
    assert not {"cluster_user", "first_contact", "lan_interface", "lookup", "ansible_user"} & words
    (tmp_path / "vault.yml").write_text("vault_sudo: x\nnnodes: 2\noutptu: x\n")
    found = options.names_in_files(["job=demo", f"@{tmp_path}/vault.yml"], DataLoader())
    assert found == {"vault_sudo", "nnodes", "outptu"}
    assert options.owners(found, {"output", "nnodes"}) == {"vault_sudo"}, "the last one is misspelt"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_document_that_cannot_be_written_is_known_before():
    assert "that you may write to" in options.wrong({"output": "/usr/x.json"}, TAKES, {})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "the verb did not come to its end"),
        ({"jbo": "demo"}, "-e jbo: nothing has this name; did you mean job? It takes job, lines, all, output, to"),
    ],
)
def test_an_earlier_document_is_not_taken_for_this_ones_answer(given, said, tmp_path, monkeypatch):
    file = tmp_path / "stop.json"
    file.write_text('{"stopped": true}')
    monkeypatch.setattr(options.ActionBase, "run", lambda *_: {})
    monkeypatch.setattr(options, "load_extra_vars", lambda _: {"output": str(file), **given})
    monkeypatch.setattr(options.context, "CLIARGS", {})
    module = options.ActionModule.__new__(options.ActionModule)
    module._loader, module._task = DataLoader(), SimpleNamespace(args={"options": TAKES})
    with pytest.raises(AnsibleActionFail, match=re.escape(said)) if given else contextlib.nullcontext():
        module.run()
    written = json.loads(file.read_text())
    assert written["problem"] == said and "stopped" not in written


def test_a_document_replaces_no_device_no_pipe_and_no_link(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for odd in ("/dev/stdout", "/dev/null", "/dev/new", str(tmp_path / "pipe")):
        assert "that you may write to" in options.wrong({"output": odd}, TAKES, {}), odd
    (tmp_path / "1.json").touch()
    (tmp_path / "latest.json").symlink_to("1.json")
    assert options.wrong({"output": str(tmp_path / "latest.json")}, TAKES, {}) == ""
    document.write(str(tmp_path / "latest.json"), "status", {"jobs": []})
    assert (tmp_path / "latest.json").is_symlink() and json.loads((tmp_path / "1.json").read_text())["jobs"] == []


def test_a_document_is_its_owners_until_he_says_otherwise(tmp_path):
    file = tmp_path / "status.json"
    document.write("", "status", {})
    document.write(str(file), "status", {"jobs": []})
    assert json.loads(file.read_text())["jobs"] == [] and stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    document.write(str(file), "status", {"jobs": ["demo"]})
    assert json.loads(file.read_text())["jobs"] == ["demo"] and stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_a_script_of_the_users_own_tells_no_steps():
    began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=75)
    script = {"state": "running", "script": "my.py", "nodes": ["node1", "node2"], "starts": 1}
    script["attempt_began"] = began.isoformat(timespec="seconds")
    assert figures.progress_line(script).startswith("my.py runs on node1, node2 for 0:01:1")
    assert figures.progress_line(script | {"starts": 3}).endswith(", started 3 times")
    assert (figures.steps(script), figures.where(script)) == ("-", "(my.py)")
    assert list(events(script, script | {"starts": 2})) == ["restarted"]
