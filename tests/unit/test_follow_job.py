"""What stands on the screen while a job runs and when it ends."""

import json
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsiblePromptInterrupt
from paths import action_plugin

follow = action_plugin("job_follow", "follow_job")
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
    "nodes": ["node1", "node2", "node3"],
    "world_size": 3,
    "backend": "gloo",
}


def test_a_progress_line_has_step_loss_speed_and_the_time_left():
    assert follow.progress_line(STATE) == "step 50/200  loss 2.3457  held-out 2.5000  12,346 tokens/s  ETA 0:01:15"


def test_a_progress_line_before_anything_is_known():
    assert follow.progress_line({"state": "running"}) == "step 0/?  ETA ?"


def test_an_alarm_is_shown_while_it_lasts():
    alarmed = STATE | {"alarm": "the disk of node1 is full"}
    assert follow.progress_line(alarmed).endswith("  ALARM: the disk of node1 is full")
    assert "alarm        the disk of node1 is full" in follow.summary("demo", alarmed, "/s")
    assert "alarm" not in follow.progress_line(STATE | {"alarm": ""}).lower()


def test_the_summary_of_a_finished_job():
    done = STATE | {
        "state": "done",
        "step": 200,
        "sample": "- name: x\n  y: z\n",
        "train_seconds": 100.2,
        "plot": "/p.png",
    }
    text = follow.summary("demo", done, "/srv/minos/jobs/demo")
    assert text.startswith("Job demo: done at step 200 of 200")
    for part in (
        "node1, node2, node3 (3 processes, gloo)",
        "loss 5.9000 before, 2.5000 now",
        "0:01:40 in all",
        "/p.png",
        "    | - name: x",
        "    |   y: z",
        "journalctl -u minos-train@demo",
    ):
        assert part in text


def test_the_summary_of_a_failed_job_names_who_failed():
    failed = {
        "state": "failed",
        "step": 3,
        "steps": 9,
        "reason": "loss is nan",
        "failed_node": "node2",
        "failed_rank": 0,
        "cause": "a disk is full",
        "advice": "make room",
        "last_lines": ["  File x", "ValueError: y"],
    }
    text = follow.summary("demo", failed, "/s")
    assert "loss is nan" in text and "node2, rank 0" in text
    assert "    |   File x\n    | ValueError: y" in text
    assert "likely: a disk is full" in text and "  do           make room" in text


def watched(monkeypatch, *states, ended_ago=1):
    """The end of a watch whose looks at the job give `states`, one after the other."""
    module = follow.ActionModule.__new__(follow.ActionModule)
    looks = iter(states)
    monkeypatch.setattr(module, "_read", lambda shared: next(looks))
    monkeypatch.setattr(follow.time, "sleep", lambda seconds: None)
    module._written = follow.time.monotonic() - ended_ago
    return module._explained(next(looks), "/s")


def test_the_word_of_the_node_that_failed_first_is_waited_for(monkeypatch):
    lost = {"state": "failed", "failed_node": "node1", "reason": "RuntimeError: Connection reset by peer"}
    first = {"state": "failed", "failed_node": "node2", "reason": "killed by signal 9 (SIGKILL)"}
    assert watched(monkeypatch, lost, lost, first) == first
    assert watched(monkeypatch, first) == first
    assert watched(monkeypatch, {"state": "done"}) == {"state": "done"}
    assert watched(monkeypatch, lost, first, ended_ago=3600) == lost, "of a job of yesterday nobody says anything more"


def test_the_summary_of_a_script_tells_no_steps():
    done = {"state": "done", "script": "my.py", "nodes": ["node1"], "world_size": 1}
    assert follow.summary("own", done, "/s").startswith("Job own: done (my.py)\n")


def test_a_watch_that_is_broken_off_leaves_what_it_saw(monkeypatch, tmp_path):
    """Ctrl-C is how one leaves it; what has happened until then is in the document all the same."""
    file = tmp_path / "watch.json"
    for patience, error in ((900, AnsiblePromptInterrupt), (0, AnsibleActionFail)):
        module = follow.ActionModule.__new__(follow.ActionModule)
        arguments = {"job": "demo", "looks": {}, "jobs": "/s", "head": "node1", "to_the_end": True}
        arguments |= {"first_step_timeout": patience, "output": str(file)}
        module._task = SimpleNamespace(args=arguments)
        looks = iter([STATE, STATE | {"nodes": ["node1", "node2"], "world_size": 2, "starts": 2}])
        monkeypatch.setattr(module, "_read", lambda shared, looks=looks: next(looks))
        ends = iter([None, AnsiblePromptInterrupt()])
        monkeypatch.setattr(module, "_show", lambda line, ends=ends: _raise(next(ends)))
        monkeypatch.setattr(follow.ActionBase, "run", lambda *_: {})
        monkeypatch.setattr(module, "_without_word", lambda *_: "")
        if error is AnsibleActionFail:
            with pytest.raises(error):
                module.run()
        else:
            assert "job demo goes on" in module.run()["msg"]
        said = json.loads(file.read_text())
        assert (said["verb"], said["state"]["step"]) == ("watch", 50)
        if error is AnsibleActionFail:
            assert said["problem"].startswith("job demo has not made a step within 0 s")
        else:
            assert "problem" not in said and ["node3" in each["event"] for each in said["events"]] == [True]


def _raise(what):
    if what:
        raise what


def seen(monkeypatch, *answers):
    """What a watch shows, line by line, and says between the lines, whose questions get these answers; and its state.

    An answer is (seconds since it was written, the state), or why there is none; None is a head that is off.
    """
    module, shown, said = follow.ActionModule.__new__(follow.ActionModule), [], []
    module._task = SimpleNamespace(args={"head": "node1", "first_step_timeout": 900, "to_the_end": True})
    module._begin()
    looks = iter(answers)

    def ask(file):
        assert file == "/s/state.json"
        if (answer := next(looks)) is None:
            raise AnsibleConnectionFailure("off")
        if isinstance(answer, str):
            return {"text": "", "age": 0, "problem": answer}
        return {"text": json.dumps(answer[1]), "age": answer[0], "problem": ""}

    monkeypatch.setattr(module, "_ask", ask)
    monkeypatch.setattr(module, "_show", shown.append)
    monkeypatch.setattr(module, "_say", said.append)
    return module._follow("demo", "/s"), shown, said


AT_WORK = [(1, STATE), (1, STATE | {"step": 51})]
DONE = (1, STATE | {"state": "done", "step": 200})
HANGS = "the shared directory does not answer"


def test_a_share_that_does_not_answer_is_said_once_and_so_is_its_return(monkeypatch):
    state, shown, said = seen(monkeypatch, *AT_WORK, HANGS, HANGS, HANGS, AT_WORK[1], DONE)
    assert said == [f"node1: {HANGS}", "node1 reads the job's state again"]
    assert state["state"] == "done" and len(shown) == 6
    assert shown[2] == shown[1], "what was seen last"


def test_the_head_may_be_off_while_its_share_hangs(monkeypatch):
    said = seen(monkeypatch, *AT_WORK, HANGS, None, None, HANGS, DONE)[2]
    assert said == [
        f"node1: {HANGS}",
        "node1 does not answer",
        "node1 answers again",
        "node1 reads the job's state again",
    ]


def test_a_state_that_is_not_there_yet_is_none_and_one_that_has_gone_is_said(monkeypatch):
    assert seen(monkeypatch, (0, {}), (0, {}), *AT_WORK, DONE)[2] == []
    said = seen(monkeypatch, *AT_WORK, (0, {}), (0, {}), DONE)[2]
    assert said == ["node1: state.json is not there any more", "node1 reads the job's state again"]


def test_a_job_without_a_word_is_not_shown_as_if_it_went_on(monkeypatch):
    """All nodes that train have lost their power, and the head has not: nobody writes the state any more."""
    dead = [(age, AT_WORK[1][1]) for age in (59, 65, 70)]
    shown, said = seen(monkeypatch, *AT_WORK, *dead, (1, STATE | {"step": 52}), DONE)[1:]
    assert ["no word for" in line for line in shown] == [False, False, False, True, True, False]
    assert shown[4].endswith("  (no word for 0:01:10)")
    assert [line.partition(": playbooks/status.yml shows")[0] for line in said] == [
        "no word for 0:01:05",
        "there is word of job demo again",
    ]
    assert seen(monkeypatch, (9000, STATE), DONE)[2][0].startswith("no word for 2:30:00"), "by who comes later, too"


@pytest.mark.parametrize(
    ("seconds", "fields", "silent"),
    [
        (59, {}, False),
        (61, {}, True),
        (61, {"mean_step_seconds": 5.0}, False),  # every tenth step is told
        (101, {"mean_step_seconds": 5.0}, True),
        (61, {"mean_step_seconds": 5.0, "log_every": 1}, True),
        (199, {"mean_step_seconds": 1.0, "log_every": 100}, False),
        (9000, {"script": "my.py"}, False),
    ],
)
def test_how_long_a_job_may_say_nothing(seconds, fields, silent):
    assert follow.is_silent(STATE | fields, seconds) is silent


def test_before_its_first_step_a_job_is_waited_for_without_a_word(monkeypatch):
    for state in (STATE | {"step": 0}, STATE | {"resumed_at": 50}):
        assert seen(monkeypatch, (300, state), DONE)[2] == []


def test_a_job_that_the_head_cannot_show_is_refused_with_what_to_do():
    module = follow.ActionModule.__new__(follow.ActionModule)
    module._task = SimpleNamespace(args={"head": "node1"})
    looks = {"node1": {"answer": {}, "problem": "it does not answer: switch it on"}}
    with pytest.raises(ValueError, match=r"node1, the head: it does not answer.*playbooks/status\.yml"):
        module._meant("demo", looks)
    looks = {"node1": {"answer": {"share": "hangs"}, "problem": ""}}
    with pytest.raises(ValueError, match=r"node1, the head: its shared directory: hangs.*playbooks/status\.yml"):
        module._meant("demo", looks)
