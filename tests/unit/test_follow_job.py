"""What stands on the screen while a job runs and when it ends."""

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


def watched(monkeypatch, *states):
    """The end of a watch whose looks at the job give `states`, one after the other."""
    module = follow.ActionModule.__new__(follow.ActionModule)
    looks = iter(states)
    monkeypatch.setattr(module, "_read", lambda shared: next(looks))
    monkeypatch.setattr(follow.time, "sleep", lambda seconds: None)
    return module._explained(next(looks), "/s")


def test_the_word_of_the_node_that_failed_first_is_waited_for(monkeypatch):
    lost = {"state": "failed", "failed_node": "node1", "reason": "RuntimeError: Connection reset by peer"}
    first = {"state": "failed", "failed_node": "node2", "reason": "killed by signal 9 (SIGKILL)"}
    assert watched(monkeypatch, lost, lost, first) == first
    assert watched(monkeypatch, first) == first
    assert watched(monkeypatch, {"state": "done"}) == {"state": "done"}


def test_the_summary_of_a_script_tells_no_steps():
    done = {"state": "done", "script": "my.py", "nodes": ["node1"], "world_size": 1}
    assert follow.summary("own", done, "/s").startswith("Job own: done (my.py)\n")
