"""job_node: which agents of ended jobs are stopped before a node is given another job."""

import json
import os
import subprocess

from rendering import task


def test_agents_of_jobs_that_have_ended_are_stopped_whatever_their_jobs_are_called(tmp_path):
    """systemctl and runuser are stand-ins; a job's name may hold dots, and end as the name of another kind of unit."""
    (tmp_path / "bin").mkdir()
    for name, script in {"systemctl": f'echo "$@" >>{tmp_path}/asked', "runuser": 'shift 2; exec "$@"'}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for job, state in {"demo.target": "failed", "other": "done", "again": "running"}.items():
        (tmp_path / "jobs" / job).mkdir(parents=True)
        (tmp_path / "jobs" / job / "state.json").write_text(json.dumps({"state": state}))
    command = task(
        "job_node",
        "send_home",
        "Send home the agents of jobs that have ended",
        job_node_found={"ended": ["demo.target", "other", "again"]},
        job_node_plan={"shared": f"{tmp_path}/jobs/new"},
    )
    path = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=path, check=True)
    assert (tmp_path / "asked").read_text().splitlines() == [
        "stop minos-train@demo.target.service",
        "stop minos-train@other.service",
    ]
    assert done.stdout.split() == ["minos-train@demo.target.service", "minos-train@other.service"]
