"""The verbs of playbooks/ on three nodes, one of which is off.

For real, only that the nodes are on this machine and, as there is no systemd here, without units: starting, stopping
and the journals are tried in tests/lab.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from paths import ROOT

from training.state import JobState
from training.storage import steps as storage_steps
from training.storage.steps import PROGRESS, TREES, Steps

NODES = ("node1", "node2", "node3")
# An address where nobody answers costs the connection's patience, as a node without power does.
SILENT = {
    "ansible_connection": "ssh",
    "ansible_host": "192.0.2.1",
    "ansible_user": "nobody",
    "ansible_ssh_common_args": "-o ProxyCommand='sleep 60'",
}


def checkpoint(directory, step, *, damaged=False):
    path = Steps(directory).path(step)
    path.mkdir(parents=True)
    for name in (PROGRESS, TREES, "model.safetensors"):
        (path / name).write_text(f"{name} of {step}")
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}
    (path / "manifest.json").write_text(json.dumps({"step": step, "sha256": sums}))
    if damaged:
        (path / TREES).write_text("something else")
    return path


def job(folder, name, **fields):
    state = JobState(folder / name)
    nodes = list(NODES)
    state.claim(f"{name}-1", "", name, nodes, 1)
    state.progress(state="running", nodes=nodes, step=30, steps=90, loss=2.5, tokens_per_s=1000.0, **fields)
    return folder / name


@pytest.fixture
def cluster(tmp_path):
    """A shared directory with a running job `demo` and a finished one `old`; `verb` plays the roles of a verb."""
    jobs = tmp_path / "shared" / "jobs"
    job(jobs, "demo")
    old = job(jobs, "old")
    JobState(old).progress(state="done", step=90)
    (old / "model").mkdir()
    (old / "model" / "model.safetensors").write_bytes(os.urandom(100_000))
    (old / "config.yaml").write_text("lr: 1\n")
    for left_out in ("data/rows", "packed-1/rows", "packages-1/x", "tensorboard/events", "model/.cache"):
        (old / left_out).parent.mkdir(exist_ok=True)
        (old / left_out).write_text("")
    for step in (10, 20, 30):
        checkpoint(jobs / "demo" / "checkpoints", step)
        checkpoint(old / "checkpoints", step)
        checkpoint(tmp_path / "node3" / "jobs" / "old" / "checkpoints" / "origin", step)
    checkpoint(old / "checkpoints", 40, damaged=True)
    hosts = {}
    for name in NODES:
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        hosts[name] = SILENT if name == "node2" else here
        hosts[name] = hosts[name] | {"job_look_state": f"{tmp_path}/{name}", "job_clean_state": f"{tmp_path}/{name}"}
    everywhere = {"job_look_readers": ["node1", "node2"], "job_look_patience": 1}
    for role in ("job_look", "job_clean", "job_stop", "job_resume", "job_export", "job_follow"):
        everywhere |= {f"{role}_user": "root", f"{role}_shared": f"{tmp_path}/shared"}
        everywhere |= {f"{role}_head": "node1", f"{role}_python": sys.executable}

    def verb(role: str, *arguments: str) -> SimpleNamespace:
        inventory, playbook, output = (tmp_path / name for name in ("hosts.yml", "play.yml", "out.json"))
        inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": everywhere}}))
        playbook.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "roles": [role]}]))
        command = [
            sys.executable,
            "-m",
            "ansible",
            "playbook",
            "-i",
            inventory,
            playbook,
            "-e",
            f"{role}_output={output}",
        ]
        done = subprocess.run(
            [*command, "-e", f"{role}_output={output}", *arguments],
            cwd=ROOT,
            env=os.environ | {"ANSIBLE_ROLES_PATH": str(ROOT / "roles"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "400"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        document = json.loads(output.read_text()) if output.exists() else {}
        return SimpleNamespace(code=done.returncode, said=done.stdout + done.stderr, document=document)

    return SimpleNamespace(path=tmp_path, jobs=jobs, old=old, hosts=hosts, verb=verb)


def steps(directory):
    return [int(path.name[5:]) for path in Steps(directory).visible()]


def test_the_status_with_a_node_off(cluster):
    done = cluster.verb("job_status")
    assert done.code == 0, done.said
    lines = [line.split() for line in done.said.splitlines()]
    assert ["demo", "running", "30/90"] in [line[:3] for line in lines]
    assert ["demo", "node2", "does", "not", "answer"] in [line[:5] for line in lines]
    assert "node2: it does not answer: switch it on" in done.said
    assert [each["job"] for each in done.document["jobs"]] == ["demo", "old"]
    assert done.document["jobs"][1]["checkpoint"]["step"] == 40
    assert done.document["nodes"]["node2"]["answers"] is False


def test_old_checkpoints_go_where_nothing_runs_and_the_last_valid_one_never(cluster):
    looked = cluster.verb("job_clean", "--check", "-e", "job_clean_keep=1")
    assert looked.code == 0 and "old, the share: would go: step-00000040, step-00000020, step-00000010" in looked.said
    assert steps(cluster.old / "checkpoints") == [40, 30, 20, 10]
    done = cluster.verb("job_clean", "-e", "job_clean_keep=1")
    assert done.code == 0, done.said
    assert steps(cluster.old / "checkpoints") == [30]
    assert steps(cluster.path / "node3/jobs/old/checkpoints/origin") == [30]
    assert steps(cluster.jobs / "demo" / "checkpoints") == [30, 20, 10]
    assert "job demo is running: stop it first" in done.said
    assert "node2: it does not answer" in done.said and "What it has stays" in done.said


def test_a_whole_job_goes_only_when_that_was_said_twice(cluster):
    unsure = cluster.verb("job_clean", "-e", "job_clean_job=old job_clean_everything=true")
    assert unsure.code != 0 and "Nothing was removed: type yes" in unsure.said
    running = cluster.verb("job_clean", "-e", "job_clean_job=demo job_clean_everything=true job_clean_sure=true")
    assert running.code != 0 and "job demo is running: stop it first" in running.said
    assert (cluster.old / "model").exists() and (cluster.jobs / "demo").exists()
    done = cluster.verb("job_clean", "-e", "job_clean_job=old job_clean_everything=true job_clean_sure=true")
    assert done.code == 0, done.said
    assert not cluster.old.exists() and not (cluster.path / "node3/jobs/old").exists()
    assert (cluster.jobs / "demo").exists()


def test_a_job_that_was_started_while_its_owner_was_asked_stays(cluster):
    """The look before the question is of a copy of the share; the job has been resumed since."""
    before = cluster.path / "before"
    shutil.copytree(cluster.path / "shared", before)
    JobState(cluster.old).claim("old-2", "old-1", "old", list(NODES), 1)
    JobState(cluster.old).progress(state="running", step=91)
    removal = "job_clean_job=old job_clean_everything=true job_clean_sure=true"
    done = cluster.verb("job_clean", "-e", removal, "-e", f"job_look_shared={before}")
    assert done.code != 0 and "Job old: it was started again and is running. Nothing was removed." in done.said
    assert (cluster.old / "model").exists() and (cluster.path / "node3/jobs/old").exists()
    JobState(cluster.old).progress(state="done")  # whatever came of it, nobody was asked about that
    done = cluster.verb("job_clean", "-e", removal, "-e", f"job_look_shared={before}")
    assert done.code != 0 and (cluster.old / "model").exists()
    (cluster.old / "state.json").write_text("{")
    done = cluster.verb("job_clean", "-e", removal)
    assert done.code == 0 and not cluster.old.exists(), "a job of which nobody can say anything may go"


def test_one_checkpoint_that_cannot_go_does_not_keep_the_others(cluster, monkeypatch):
    """Somebody has a file of it open over NFS, for example."""
    spec = importlib.util.spec_from_file_location("clean", ROOT / "roles/job_clean/files/clean.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    remove = program.remove_directory

    def busy(path):
        if path.name.endswith("20"):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        remove(path)

    monkeypatch.setattr(program, "remove_directory", busy)
    for name in ("demo", "old"):
        asked = {"everything": False, "keep": 1, "look_only": False}
        gone, kept, freed, notes = program.clean(cluster.jobs / name, asked)
        assert [path[-2:] for path in gone] == (["10"] if name == "demo" else ["40", "10"]) and freed > 0
        assert notes == [
            f"{Steps(cluster.jobs / name / 'checkpoints').path(20)}: Directory not empty; what is left stays"
        ]
        assert [path[-2:] for path in kept] == ["30"]


def test_what_only_cannot_be_read_now_stays(cluster, monkeypatch):
    """A share that failed for a moment proves no damage, and may be the newest there is."""
    spec = importlib.util.spec_from_file_location("clean", ROOT / "roles/job_clean/files/clean.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    sick, reads = set(), storage_steps.sha256_of

    def fails(path):
        if path.parent.name[-2:] in sick:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return reads(path)

    monkeypatch.setattr(storage_steps, "sha256_of", fails)
    asked = {"everything": False, "keep": 1, "look_only": True}
    sick.add("30")
    gone, kept, _, notes = program.clean(cluster.old, asked)
    assert ([path[-2:] for path in gone], [path[-2:] for path in kept], notes) == (["40", "10"], ["30", "20"], [])
    sick.update(("20", "10"))
    gone, kept, _, notes = program.clean(cluster.old, asked)
    assert gone == [] and len(kept) == 4 and notes[0].endswith("holds no valid checkpoint, and so nothing of it goes")
    own = Steps(cluster.old / "checkpoints")
    sick.remove("10")
    own.prune(1)
    assert steps(own.directory) == [30, 20, 10], "only the damaged one has gone"
    sick.clear()
    own.prune(1)
    assert steps(own.directory) == [30]


def test_a_job_that_cannot_go_whole_is_found_by_the_same_command_again(cluster, monkeypatch):
    spec = importlib.util.spec_from_file_location("clean", ROOT / "roles/job_clean/files/clean.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)

    def busy(path):
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr(program.shutil, "rmtree", busy)
    gone, _, _, notes = program.clean(cluster.old, {"everything": True, "look_only": False})
    assert gone == [] and notes and (cluster.old / "state.json").exists()


def test_results_are_fetched_and_checked_and_fetched_once(cluster):
    to = cluster.path / "results"
    done = cluster.verb("job_export", "-e", f"job_export_job=old job_export_to={to}")
    assert done.code == 0 and "all match their hashes" in done.said, done.said
    model = cluster.old / "model/model.safetensors"
    assert (to / "old/model/model.safetensors").read_bytes() == model.read_bytes()
    assert {file["name"] for file in done.document["files"]} == {"config.yaml", "model/model.safetensors", "state.json"}
    sums = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=to / "old", capture_output=True, text=True)
    assert sums.returncode == 0
    again = cluster.verb("job_export", "-e", f"job_export_job=old job_export_to={to}")
    assert "3 of them were there" in again.said and "changed=1" not in again.said
    (cluster.old / "model/model.safetensors").unlink()
    (cluster.old / "output/.hydra").mkdir(parents=True)
    (cluster.old / "output/.hydra/config.yaml").write_text("x: 1\n")
    (cluster.old / "output/best.pt").symlink_to("epoch3.pt")
    other = cluster.verb("job_export", "-e", f"job_export_job=old job_export_to={to}")
    assert "Not of this job as it is now, and left there: model/model.safetensors." in other.said
    assert "Links are not fetched: output/best.pt." in other.said
    assert "There is no model" not in other.said, "it is done: a script of its owner's makes none"
    assert (to / "old/output/.hydra/config.yaml").read_text() == "x: 1\n"
    running = cluster.verb("job_export", "-e", f"job_export_job=demo job_export_to={to}")
    assert running.code != 0 and "Job demo is running: wait for its end" in running.said


def test_the_head_is_not_asked_for_results_that_only_another_node_can_read(cluster):
    """Its mount is stale: here a directory that is not there."""
    cluster.hosts["node1"]["job_look_shared"] = "/nowhere"
    cluster.hosts["node3"]["job_look_readers"] = ["node3"]
    done = cluster.verb("job_export", "-e", f"job_export_job=old job_export_to={cluster.path}/results")
    assert done.code != 0 and "node1, the head: its shared directory: [Errno 2]" in done.said
    assert "List its results" not in done.said and not (cluster.path / "results").exists()


def test_a_job_is_followed_to_its_end(cluster):
    done = cluster.verb("job_follow", "--limit", "node1", "-e", "job_follow_job=old")
    assert done.code == 0 and "Job old: done at step 90 of 90" in done.said, done.said
    assert (done.document["state"]["state"], done.document["events"]) == ("done", [])


def test_a_share_that_hangs_does_not_hold_who_follows_a_job(cluster):
    state = cluster.jobs / "demo" / "state.json"
    state.unlink()
    os.mkfifo(state)  # holds whoever opens it
    options = "job_follow_job=demo job_follow_interval=1 job_follow_first_step_timeout=4"
    done = cluster.verb("job_follow", "--limit", "node1", "-e", options)
    assert done.said.count("node1: the shared directory does not answer") == 1, done.said
    assert done.code != 0 and "job demo has not made a step within 4 s" in done.said


def test_a_job_that_cannot_go_on_is_refused_with_one_line(cluster):
    for name, reason in (("old", "job old is done at step 90 of 90"), ("nope", "there is no such job; there are demo")):
        done = cluster.verb("job_resume", "-e", f"job_resume_job={name}")
        assert done.code != 0 and reason in done.said
        assert done.said.count("[ERROR]") == 1


def test_a_job_whose_units_are_gone_is_recorded_as_stopped(cluster):
    done = cluster.verb("job_stop")
    assert done.code == 0, done.said
    assert "Job demo is stopped at step 30 of 90." in done.said
    assert "node2: it does not answer" in done.said and "stays off" in done.said
    state = JobState(cluster.jobs / "demo").read()
    assert state["state"] == "stopped" and "before it had saved" in state["reason"]
    assert (cluster.jobs / "demo" / "stop-requested").exists()
    assert (done.document["stopped"], done.document["state"]["step"]) == (True, 30)
