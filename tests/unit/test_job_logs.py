"""The journals of all nodes in one order, the lines that say something, and the failure that was first."""

from __future__ import annotations

import datetime
import sys

from paths import ROOT, action_plugin

sys.path.insert(0, str(ROOT / "roles/job_logs"))

from log_lines.interest import around, first_failure, interesting
from log_lines.order import merged, newest, shift

logs = action_plugin("job_logs", "show_logs")
T = 1_800_000_000.0
WORKER = "flock"


def look(*lines, ahead=0.0):
    """An answer of journal.py; `lines` are (seconds after T by a right clock, text or (who, text))."""
    rows = [[T + at + ahead, *((WORKER, said) if isinstance(said, str) else said)] for at, said in lines]
    answer = {"time": T + 100 + ahead, "lines": rows}
    return {"answer": answer, "problem": "", "before": T + 99.9, "after": T + 100.1}


def texts(lines):
    return [line.text for line in lines]


# What three nodes say when a worker on node2 has no memory left: the others only see that it is gone.
CRASH = {
    "node1": look(
        (0, ("systemd", "Started minos-train@demo.service - Minos: training job demo.")),
        (2, "rank 0/2 node=node1 device=cpu backend=gloo world_size=2 pid=7"),
        (3, "step 10/200 epoch 1 loss 3.1 lr 1.0e-03 tokens/s 900 eta 0:01:00"),
        (5.1, "[rank0]: RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:20406"),
        (5.2, "rank 0 (node1): another rank is gone or late, this one goes too"),
        (6, "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:"),
    ),
    "node2": look(
        (2, "rank 1/2 node=node2 device=cpu backend=gloo world_size=2 pid=9"),
        (4.9, "Traceback (most recent call last):"),
        (4.9, '  File "finetune.py", line 180, in forward_backward'),
        (4.9, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
        (7, ("systemd", "minos-train@demo.service: Main process exited, code=exited, status=1/FAILURE")),
    ),
}


def test_the_first_failure_is_the_one_that_the_others_only_notice():
    failure = first_failure(merged(CRASH))
    assert (failure.node, failure.text) == (
        "node2",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    )
    assert texts(around(merged(CRASH), failure))[-2:] == [failure.text, CRASH["node2"]["answer"]["lines"][-1][2]]
    assert all(line.node == "node2" for line in around(merged(CRASH), failure))


def test_where_nobody_names_a_failure_of_its_own_the_earliest_is_shown():
    assert first_failure(merged({"node1": CRASH["node1"]})).text.startswith("[rank0]: RuntimeError")
    assert first_failure(merged({"node1": look((1, "done at step 200/200: /srv/minos/jobs/demo"))})) is None


def test_an_alarm_that_was_over_is_shown_and_is_not_the_first_failure():
    full = "alarm: /srv/minos/jobs/demo cannot be written to (No space left on device); waiting for room"
    lines = merged(CRASH | {"node3": look((0.5, full), (0.7, "/srv/minos/jobs/demo has room again"))})
    assert {full, "/srv/minos/jobs/demo has room again"} <= set(texts(interesting(lines)))
    assert first_failure(lines).node == "node2"


def test_a_worker_that_was_killed_is_named_by_its_agent():
    agent = "E1121 07:50:48.679000 8470 torch/distributed/api.py:1002] failed (exitcode: {}) local_rank: 0"
    looks = {
        "node1": look((1, "[rank0]: RuntimeError: [gloo/x] Connection closed by peer"), (3, agent.format(1))),
        "node2": look((2, agent.format(-9)), (2.1, "training.finetune FAILED")),
    }
    assert first_failure(merged(looks)).text == agent.format(-9)


def test_a_figure_that_is_called_error_is_no_failure():
    figures = (
        "epoch 1 val_error 0.31",
        "mse_error=0.2",
        "0 failed, 12 passed",
        "nonfatal",
        "node1 NCCL INFO failed over",
    )
    lines = merged({"node1": look(*((at, text) for at, text in enumerate(figures)), (9, "ValueError: the one"))})
    assert first_failure(lines).text == "ValueError: the one"
    for text in ("Fatal Python error: Aborted", "ncclSystemError: x", "OUT OF MEMORY", "KeyboardInterrupt"):
        assert first_failure(merged({"node1": look((1, text))})).text == text


def test_the_lines_that_say_something():
    shown = texts(interesting(merged(CRASH)))
    assert "rank 0/2 node=node1 device=cpu backend=gloo world_size=2 pid=7" in shown
    assert not [text for text in shown if text.startswith("step 10")], "progress is shown elsewhere"
    assert not [text for text in shown if "Traceback" in text or "line 180" in text], "they stand around the failure"


def test_one_order_by_time_also_where_a_clock_is_wrong():
    late = {**CRASH, "node2": look((4.9, "ValueError: the one"), ahead=-3600)}
    assert round(shift(late["node2"]), 1) == 3599.9
    order = [line.text[:5] for line in merged(late)]
    assert order.index("Value") < order.index("[rank")
    assert shift(look(ahead=3)) == 0.0, "a few seconds are the network's"
    said = "\n".join(logs.report(late, merged(late), None, 0))
    assert "node2: its clock is 3600 s behind this machine's" in said


def test_the_newest_of_each_node():
    many = {"a": look(*((at, f"alarm: a{at}") for at in range(9))), "b": look((0, "alarm: b"))}
    assert texts(newest(merged(many), 2)) == ["alarm: b", "alarm: a7", "alarm: a8"]
    said = logs.report(many, merged(many), None, 2)
    assert said[-1] == "(7 lines before these: -e lines=4)"


def test_what_is_shown():
    off = {"answer": {}, "problem": "it does not answer: switch it on", "before": T, "after": T}
    looks = CRASH | {"node3": off}
    said = logs.report(looks, interesting(merged(looks)), first_failure(merged(looks)), 30)
    assert said[0].startswith("First failure: node2, ") and "OutOfMemoryError" in said[0]
    assert "  likely: the memory of the GPU is full" in said and any(
        line.startswith("  do: a smaller") for line in said
    )
    assert said[-1] == "node3: it does not answer: switch it on"
    assert any("  systemd: Started minos-train@demo" in line for line in said)
    assert not any(f"{WORKER}: " in line for line in said), "the job itself speaks"
    assert logs.report({}, [], None, 30) == ["There is nothing in the journals of this job."]


def test_what_was_made_good_for_is_not_the_first_failure():
    """A worker dies, the job goes on, and three days later another one has no memory left."""
    days, lines = 3 * 86400, merged(CRASH)
    later = merged({"node1": look((days, "torch.OutOfMemoryError: CUDA out of memory."))})
    state = {"state": "failed", "started": at(-60), "stepped": at(days - 20)}
    assert first_failure(logs.that_count([*lines, *later], state)) == later[0]
    assert first_failure(logs.that_count(lines, {"state": "running", "started": at(-60), "stepped": at(60)})) is None
    assert logs.that_count(lines, {"state": "done"}) == []
    assert logs.that_count(lines, {"state": "unknown"}) == lines, "nobody can read the share: all counts"


def at(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(T + seconds, datetime.UTC).isoformat()
