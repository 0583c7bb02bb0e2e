"""What the verbs do on a node: the programs that run there, on this machine.

systemctl and journalctl are stand-ins that write down what they are asked, as there is no systemd here; the real ones
are asked in tests/lab.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from paths import ROOT

READ_STATE = "job_follow/files/read_state.py"
STAND_IN = """\
#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$1" in
is-active) echo "$ACTIVE"; [ "$ACTIVE" = active ] ;;
is-enabled) echo "$ENABLED"; [ "$ENABLED" = enabled ] ;;
reset-failed) exit 1 ;;
--no-pager) case "$*" in *--reverse*) tac "$JOURNAL" ;; *) cat "$JOURNAL" ;; esac ;;
esac
"""


@pytest.fixture
def node(tmp_path):
    """`run` runs a role's program with what it is asked; returns its answer and what it asked systemd."""
    for name in ("systemctl", "journalctl"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "demo.env").write_text("MINOS_JOB=demo\nMINOS_RUN_ID=demo-1\nMINOS_NODE=node1\n")
    (tmp_path / "demo.env").chmod(0o640)

    def run(program, asked, active="inactive", enabled="disabled", journal="", code=0):
        calls, lines = tmp_path / "calls", tmp_path / "journal"
        calls.write_text("")
        lines.write_text(journal)
        variables = {"CALLS": str(calls), "JOURNAL": str(lines), "ACTIVE": active, "ENABLED": enabled}
        variables["PYTHONPATH"] = str(ROOT)  # what ask_node packs beside the program
        done = subprocess.run(
            [sys.executable, ROOT / "roles" / program, json.dumps(asked)],
            env=os.environ | variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout or "{}"), calls.read_text().splitlines()

    run.folder = tmp_path
    return run


def test_a_unit_is_started_under_the_new_run_id(node):
    asked = {"job": "demo", "run_id": "demo-2", "settings": str(node.folder)}
    answer, calls = node("job_resume/files/start_unit.py", asked)
    file = node.folder / "demo.env"
    assert file.read_text() == "MINOS_JOB=demo\nMINOS_RUN_ID=demo-2\nMINOS_NODE=node1\n"
    assert file.stat().st_mode & 0o777 == 0o640
    assert answer == {"changed": True}
    assert [call.partition(" minos-train")[0] for call in calls] == [
        "systemctl reset-failed",
        "systemctl enable",
        "systemctl restart --no-block",
    ]
    assert not list(node.folder.glob(".*"))


@pytest.mark.parametrize(
    ("active", "enabled", "stops"),
    [
        ("active", "enabled", True),
        ("activating", "disabled", True),
        ("inactive", "enabled", True),
        ("inactive", "disabled", False),
    ],
)
def test_a_unit_is_stopped_now_and_at_boot(node, active, enabled, stops):
    answer, calls = node("job_stop/files/stop_unit.py", {"job": "demo"}, active=active, enabled=enabled)
    assert answer == {"was": active, "changed": stops}
    done = [f"systemctl {verb} minos-train@demo.service" for verb in ("disable --now", "reset-failed")]
    assert [call for call in calls if call in done] == (done if stops else [])


def test_a_job_that_goes_takes_its_settings_along(node):
    asked = {"job": "demo", "settings": str(node.folder)}
    assert node("job_clean/files/forget.py", asked)[0] == {"changed": True}
    assert not (node.folder / "demo.env").exists()
    assert node("job_clean/files/forget.py", asked) == ({"changed": False}, [])


def test_the_state_of_a_job_is_read_with_its_age(node):
    file = node.folder / "state.json"
    asked = {"file": str(file), "patience": 5}
    assert node(READ_STATE, asked)[0] == {"text": "", "age": 0, "problem": ""}, "there is none yet"
    file.write_text('{"state":\n "running"}\n')
    os.utime(file, (time.time() - 90,) * 2)
    answer = node(READ_STATE, asked)[0]
    assert answer["text"] == '{"state":\n "running"}\n' and answer["problem"] == ""
    assert 88 < answer["age"] < 120
    answer = node(READ_STATE, asked | {"file": str(node.folder)})[0]
    assert answer["problem"].endswith("Is a directory") and answer["text"] == ""


def test_a_share_that_hangs_is_said_instead_of_waited_for(node):
    """As a dead server does, so holds a pipe that nobody writes whoever opens it."""
    os.mkfifo(node.folder / "state.json")
    began = time.monotonic()
    answer = node(READ_STATE, {"file": f"{node.folder}/state.json", "patience": 0.5})[0]
    assert answer == {"text": "", "age": 0, "problem": "the shared directory does not answer"}
    assert time.monotonic() - began < 10


def entry(at, message, who="flock"):
    return (
        json.dumps({"__REALTIME_TIMESTAMP": str(at * 1_000_000), "SYSLOG_IDENTIFIER": who, "MESSAGE": message}) + "\n"
    )


def test_the_journal_is_read_since_the_start_without_the_progress(node):
    text = entry(5, "rank 0/1 node=node1 ") + entry(6, "step 1/9 epoch 1 loss 2.0") + entry(7, [101, 255, 114])
    asked = {"job": "demo", "started": 1000, "clock": 0, "everything": False}
    answer, calls = node("job_logs/files/journal.py", asked | {"clock": 0}, journal=text)
    assert [line[2] for line in answer["lines"]] == ["rank 0/1 node=node1", "e\ufffdr"]
    assert "--unit=minos-train@demo.service" in calls[0] and "--unit=minos-train-failed@demo.service" in calls[0]
    since = int(calls[0].partition("--since=@")[2].split()[0])
    assert abs(since - (1000 - 10 + answer["time"])) <= 2, (
        "by this node's clock, which is far ahead of the asking one's"
    )
    assert "--dmesg" in calls[1]


def test_lines_of_one_time_stay_in_their_order_and_long_ones_whole(node):
    """A traceback comes in one piece, and journald gives all of its lines one time; more than 4 KiB only with --all."""
    lines = ["Traceback (most recent call last):", '  File "b.py", line 2', '  File "a.py", line 1', "KeyError: 'x'"]
    text = "".join(entry(5, line) for line in lines)
    asked = {"job": "demo", "started": 0, "clock": 0, "everything": False}
    answer, calls = node("job_logs/files/journal.py", asked, journal=text)
    assert [line[2] for line in answer["lines"]] == lines
    assert all("--all " in call for call in calls)


def test_everything_is_every_line_of_every_start(node):
    text = entry(5, "step 1/9 epoch 1 loss 2.0")
    asked = {"job": "demo", "started": 0, "clock": 0, "everything": True}
    answer, calls = node("job_logs/files/journal.py", asked, journal=text)
    assert [line[2] for line in answer["lines"]] == ["step 1/9 epoch 1 loss 2.0"]
    assert len(calls) == 1 and "--since" not in calls[0] and "--lines" not in calls[0]
