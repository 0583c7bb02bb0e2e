"""Jobs on three nodes, in a lab of their own: trained, killed, stopped, resumed, refused, failed, looked at.

The tests of this file build on each other and run in their order. How the nodes become a cluster is in test_cluster.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults import matrix, report
from tests.faults.catalogue import chosen
from tests.faults.cluster import Cluster
from tests.labs import Lab, changed, recap, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
LAB = Lab("jobs", variables={})
NODES = ["node1", "node2", "node3"]
JOBS, LOCAL = "/srv/minos/jobs", "/var/lib/minos/jobs"
on = LAB.inside


def playbook(name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Follows a job more closely than people need to, or each run would end seconds after its job."""
    closely = ("-e", "job_follow_interval=1") if name == "train.yml" else ()
    return LAB.playbook(name, *closely, *arguments, check=check)


def state(job: str) -> dict:
    return json.loads(on("node1", f"cat {JOBS}/{job}/state.json"))


@pytest.fixture(scope="module", autouse=True)
def nodes():
    LAB.command("down")
    LAB.command("up", "-n", "3")
    playbook("site.yml", "--skip-tags", "netplan,ssh_mesh,tensorboard")  # which no job needs
    yield
    LAB.command("down")


REFUSED = {
    "none": (["nnodes=0"], "nnodes=0: write a whole number from 1 to 3"),
    "unknown key": (["nnodes=1", "config=CONFIG"], "stepz: unknown key; did you mean steps?"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_before_any_node_is_touched(given, message, tmp_path):
    """One of what is typed and one of a file; all of them are in tests/unit/test_plan_job.py."""
    config = tmp_path / "bad.yaml"
    config.write_text("data_train: x.txt\nstepz: 3\n")
    arguments = [word for pair in given for word in ("-e", pair.replace("CONFIG", str(config)))]
    done = playbook("train.yml", *arguments, check=False)
    assert done.returncode != 0
    assert set(recap(done)) == {"localhost"}
    assert recap(done)["localhost"]["failed"] == 1
    assert (done.stdout + done.stderr).count("fatal: [localhost]") == 1
    assert message in done.stdout + done.stderr


def test_check_mode_of_a_new_job_places_nothing():
    done = playbook("train.yml", "--check", "-e", "nnodes=3 job=never")
    assert changed(done)["node3"] >= 3, "it should say what it would place"
    for node in NODES:
        assert (
            on(node, f"ls -d /etc/minos/jobs/never.env /var/lib/minos/jobs/never {JOBS}/never 2>/dev/null; true") == ""
        )


def workers(node: str, module: str = "training.finetune") -> list[str]:
    """Return the pids of the training processes of a node, without their agent and their own helpers."""
    listed = [line for line in on(node, "ps -eo pid,args").splitlines() if f"-m {module}" in line]
    return [line.split()[0] for line in listed if "torch.distributed.run" not in line]


def agents(node: str) -> list[str]:
    return [line for line in on(node, "ps -eo args").splitlines() if "-m torch.distributed.run" in line]


@pytest.fixture(scope="module")
def killed() -> dict:
    """A job on three nodes, one of whose workers is killed on the way; its state at the end."""
    done = playbook("train.yml", "-e", "nnodes=3 job=three steps=90 save_every=10 follow=false")
    assert re.search(r"^step \d+/90", done.stdout, re.MULTILINE), "it should return after the first step"
    assert [len(agents(node)) for node in NODES] == [1, 1, 1]
    assert [len(workers(node)) for node in NODES] == [1, 1, 1]
    wait_until(lambda: "step-" in on("node1", f"ls {JOBS}/three/checkpoints 2>/dev/null; true"), 120)
    on("node2", f"kill -9 {workers('node2')[0]}")
    ended = playbook("train.yml", "-e", "nnodes=3 job=three steps=90 save_every=10 job_node_max_restarts=7")
    assert on("node2", "grep ^MINOS_MAX_RESTARTS /etc/minos/jobs/three.env") == "MINOS_MAX_RESTARTS=10", "it ran"
    assert re.search(r"^Job three: done at step 90 of 90", ended.stdout, re.MULTILINE)
    return state("three")


def test_a_killed_worker_is_made_good_for(killed):
    assert (killed["state"], killed["step"], killed["world_size"]) == ("done", 90, 3)
    for node in NODES:
        journal = on(node, "journalctl --no-pager -o cat -u minos-train@three")
        assert len(re.findall(rf"^rank \d/3 node={node} device=cpu backend=gloo", journal, re.MULTILINE)) == 2
        assert journal.count("Started minos-train@three") == 1, "the agents should have stayed"
    assert re.search(r"resumed from .*step-\d+", on("node1", "journalctl --no-pager -o cat -u minos-train@three"))


def test_the_three_nodes_learned_something(killed):
    assert killed["nodes"] == NODES
    assert killed["heldout_last"] < killed["heldout_first"] / 2
    assert on("node1", f"test -s {killed['plot']} && ls {killed['checkpoint']}").split()


def test_data_are_prepared_on_the_head_and_every_node_has_its_own_copy(killed):
    packed = json.loads(on("node1", f"cat {JOBS}/three/prepared.json"))["packed"]
    prepared = on("node1", f"cd {JOBS}/three/{packed} && sha256sum *")
    assert "manifest.json" in prepared
    for node in NODES:
        assert on(node, f"cd {LOCAL}/three/data/{packed} && sha256sum *") == prepared
        raw = on(node, f"cd {LOCAL}/three/data && ls | grep jsonl$ || true").split()
        assert len(raw) == (2 if node == "node1" else 0), "the raw data are the head's business"


def test_checkpoints_are_written_to_a_disk_of_their_own_and_pushed(killed):
    newest = Path(killed["checkpoint"])
    assert newest.parent == Path(f"{JOBS}/three/checkpoints")
    local = {node: on(node, f"find {LOCAL}/three -name {newest.name}") for node in NODES}
    writers = [node for node, found in local.items() if found]
    assert len(writers) == 1, "rank 0 writes, on its own node"
    everything = "find . -type f -exec sha256sum {} + | sort"
    pushed = on("node1", f"cd {newest} && {everything}")
    assert "manifest.json" in pushed
    assert on(writers[0], f"cd {local[writers[0]]} && {everything}") == pushed


def test_a_finished_job_says_so_and_changes_nothing(killed):
    done = playbook("train.yml", "-e", "nnodes=3 job=three steps=90 save_every=10")
    assert "Job three is finished" in done.stdout
    assert sum(changed(done).values()) == 0
    assert "Job three: done at step 90 of 90" in done.stdout


def test_other_settings_under_the_same_name_are_refused(killed):
    done = playbook("train.yml", "-e", "nnodes=3 job=three steps=91", check=False)
    assert done.returncode != 0
    assert "Job three is already there with other settings" in done.stdout + done.stderr
    assert state("three") == killed


def test_nodes_that_differ_do_not_train_together(killed):
    """A package, a byte of the code and the config change on two nodes while the job runs, and a worker dies."""
    playbook("train.yml", "-e", "nnodes=3 job=differ steps=200 heldout_rows=6 sample_tokens=0 follow=false")
    record = "/opt/minos/envs/dist-train/lib/python3.11/site-packages/tqdm-*.dist-info/RECORD"
    on("node2", f"cp -p {record} /root/RECORD && sed -i '/^tqdm.__init__.py,/s/sha256=./sha256=_/' {record}")
    on("node2", f"sed -i 's/^lr: .*/lr: 0.5/' {LOCAL}/differ/config.yaml")
    on("node3", f"echo >> $(ls {LOCAL}/differ/code-*/training/ledger.py)")
    on("node1", f"kill -9 {workers('node1')[0]}")
    wait_until(lambda: state("differ")["state"] == "failed", 120)
    failed = state("differ")  # which of the nodes has rank 0, and is the standard, is torchrun's choice
    assert set(re.findall(r"node\d", failed["reason"])) >= {"node2", "node3"}
    assert re.search(r" do(es)? not run the same as node\d \(rank 0\): config lr, package tqdm", failed["reason"])
    rows = {" ".join(line.split()[:2]): line.split()[2:] for line in failed["last_lines"]}
    assert "0.5" in rows["config lr"] and rows["config lr"][0] != rows["config lr"][1]
    assert rows["package tqdm"][0] == rows["package tqdm"][2] and rows["package tqdm"][1] != rows["package tqdm"][3]
    assert rows["code ledger.py"][0] != rows["code ledger.py"][1]
    refused = playbook("train.yml", "-e", "nnodes=3 job=differ steps=200 heldout_rows=6 sample_tokens=0", check=False)
    assert refused.returncode != 0
    assert "node2, node3 do not run the same as node1: package tqdm, code ledger.py;" in refused.stdout + refused.stderr
    assert on("node1", "systemctl list-units --state=active,activating 'minos-train@differ*' --plain --no-legend") == ""
    on("node2", f"cp -p /root/RECORD {record} && rm /root/RECORD")


def test_a_job_that_does_not_answer_is_stopped_all_the_same(killed):
    """Its state says running, but nobody works on it."""
    on("node1", f"mkdir {JOBS}/dead && cp {JOBS}/three/state.json {JOBS}/dead/ && chown -R minos: {JOBS}/dead")
    on("node1", f'sed -i \'s/"done"/"running"/; s/"three"/"dead"/\' {JOBS}/dead/state.json')
    done = playbook("playbooks/stop.yml", "-e", "job=dead")
    assert (
        "Job dead is stopped" in done.stdout and "its units were stopped before it had saved by itself" in done.stdout
    )
    assert state("dead")["state"] == "stopped" and set(recap(done)) == {"localhost", *NODES}
    nameless = playbook("playbooks/stop.yml", check=False)
    assert nameless.returncode != 0 and "-e job=" in nameless.stdout + nameless.stderr


def test_a_node_that_leaves_saves_first_and_a_stopped_job_goes_on_where_it_was(killed):
    command = ["train.yml", "-e", "nnodes=3 job=leave steps=60 heldout_rows=6 sample_tokens=0"]
    playbook(*command, "-e", "follow=false")
    LAB.command("bandwidth", "node3", "10mbit")  # or a fast machine had made all steps before the node leaves
    second = playbook("train.yml", "-e", "nnodes=1 job=second steps=2 sample_tokens=0", check=False)
    assert "node1 trains job leave, and a node has one job at a time" in second.stdout + second.stderr
    followed = playbook(*command, "-e", "follow=false job_node_stop_timeout=333")
    assert sum(changed(followed).values()) == 0, "a node that reboots now must come back with what the others run with"
    on("node2", "systemctl stop minos-train@leave")
    LAB.command("bandwidth", "node3", "none")
    left = state("leave")
    assert left["state"] == "running", "the job goes on without being started again"
    assert 0 < left["step"] < 60
    on("node2", "systemctl start minos-train@leave")
    wait_until(lambda: state("leave")["step"] > left["step"])
    stopped = playbook("playbooks/stop.yml", "-e", "job=leave")
    step = int(re.search(r"Job leave is stopped at step (\d+) of 60", stopped.stdout)[1])
    assert left["step"] < step < 60
    assert [len(workers(node)) for node in NODES] == [0, 0, 0]
    again = playbook(*command)
    assert f"unchanged: {JOBS}/leave/packed-" in again.stdout
    assert (state("leave")["state"], state("leave")["step"]) == ("done", 60)
    journals = "".join(on(node, "journalctl --no-pager -o cat -u minos-train@leave") for node in NODES)
    for begin in (left["step"], step):
        assert re.search(rf"resumed from .*\(step {begin}/60\)", journals)


def test_the_report_names_who_failed_first_and_not_who_lost_a_peer(killed, tmp_path):
    """Something kills node2's worker whenever it has met the others: it cannot say so itself, and they only miss it."""
    settings = "nnodes=3 nnodes_min=3 job=shot job_node_max_restarts=1 sample_tokens=0"
    command = ["ansible-playbook", "-i", "inventory/lab", "train.yml", "-e", settings]
    with (tmp_path / "said").open("w") as said:
        following = subprocess.Popen(
            command, cwd=ROOT, env=LAB.environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        met, patience = set(), time.monotonic() + 300
        while following.poll() is None and time.monotonic() < patience:
            journal = on("node2", "journalctl --no-pager -o cat -u minos-train@shot | grep '^rank ' || true")
            for pid in set(re.findall(r" pid=(\d+)", journal)) - met:
                on("node2", f"kill -9 {pid} || true")  # it may just have missed its peers
                met.add(pid)
            time.sleep(1)
        following.terminate()
    # train.yml waits a minute for the word of the node that knows; beside other labs it may take longer.
    wait_until(lambda: state("shot").get("failed_node") == "node2", 180)
    failed, told = state("shot"), (tmp_path / "said").read_text()
    report = told if "likely: something killed it" in told else playbook("playbooks/status.yml").stdout
    assert following.returncode != 0 and "Job shot: failed" in told
    assert (failed["state"], failed["failed_node"], failed.get("step", 0)) == ("failed", "node2", 0)
    assert failed["reason"].startswith("killed by signal 9 (SIGKILL) (the workers were started 3 times")
    assert "likely: something killed it" in report and "node2" in report
    assert any("failed (exitcode: -9)" in line for line in failed["last_lines"])
    shown = "systemctl list-units --plain --no-legend --state=active,activating 'minos-train@shot*'"
    wait_until(lambda: not any(on(node, shown) for node in NODES), 90)  # nobody waits for those who have given up


def wait_for_line(job: str, line: str) -> None:
    """Wait until one of the nodes has said `line` in this job."""
    said = f"journalctl --no-pager -o cat -u minos-train@{job} | grep -cF {shlex.quote(line)} || true"
    wait_until(lambda: any(on(node, said) != "0" for node in NODES), 120)


def test_the_classic_loop_is_supervised_killed_and_goes_on_behind_its_snapshot(killed, tmp_path):
    """A script that knows nothing of Minos, with a package that the locked environment lacks."""
    (tmp_path / "extra.txt").write_text("einops>=0.8\n")
    started = ["-e", "script=training/examples/plain_ddp.py", "-e", "script_args=--epochs 12 --pause 1"]
    started += ["-e", f"nnodes=3 job=classic nnodes_min=3 requirements={tmp_path}/extra.txt"]
    playbook("train.yml", *started, "-e", "follow=false")
    wait_for_line("classic", "epoch 2/12")

    agent = on("node1", "tr '\\0' ' ' < /proc/$(systemctl show -P MainPID minos-train@classic)/cmdline").split()
    on("node2", f"kill -9 {workers('node2', 'training.script')[0]}")

    shown = playbook("playbooks/print.yml", "-e", f"job=classic output={tmp_path}/print.json")
    assert set(changed(shown).values()) == {0}
    whole = shown.stdout.replace(" \\\n", "").splitlines()
    typed = [shlex.split(line) for line in whole if line.startswith("/usr/bin/flock")]
    assert len(typed) == 3
    assert agent in [words[words.index(agent[0]) :] for words in typed], "what is printed is what runs"
    written = json.loads((tmp_path / "print.json").read_text())
    assert [written["nodes"][node]["words"] for node in NODES] == typed

    done = playbook("train.yml", *started)
    assert "Job classic: done" in done.stdout
    ended = state("classic")
    assert (ended["state"], ended["script"], ended["nodes"], ended["starts"]) == ("done", "plain_ddp.py", NODES, 2)
    journals = [on(node, "journalctl --no-pager -o cat -u minos-train@classic") for node in NODES]
    assert sum("going on from snapshot.pt behind epoch" in each for each in journals) == 3
    assert sum(each.count("epoch 12/12") for each in journals) == 1
    assert on("node1", f"ls {JOBS}/classic/output") == "snapshot.pt"
    for node in NODES:
        packages = on(node, "sed -n s/^MINOS_PACKAGES=//p /etc/minos/jobs/classic.env")
        assert packages.startswith(f"{LOCAL}/classic/packages-")
        assert "einops" in on(node, f"ls {packages}").split()
    again = playbook("train.yml", *started)
    assert "Job classic is finished" in again.stdout and sum(changed(again).values()) == 0


def test_a_script_that_fails_says_why_and_may_be_mended(killed, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("raise ValueError('no such luck')\n")
    failed = playbook("train.yml", "-e", f"nnodes=2 script={script}", check=False)
    assert failed.returncode != 0
    assert "mine.py: ValueError: no such luck" in failed.stdout + failed.stderr
    assert state("mine")["starts"] == 1, "it is not tried again"
    script.write_text("import os\nprint('rank', os.environ['RANK'])\n")
    playbook("train.yml", "-e", f"nnodes=2 script={script}")
    assert state("mine")["state"] == "done"
    script.write_text("pass\n")
    refused = playbook("train.yml", "-e", f"nnodes=2 script={script}", check=False)
    assert "Job mine is done with another script" in refused.stdout + refused.stderr
    planned = playbook("playbooks/print.yml", "-e", f"nnodes=2 script={script} job=other")
    assert planned.stdout.count("-m training.script --config /var/lib/minos/jobs/other/config.yaml") == 2
    assert set(changed(planned).values()) == {0}
    assert on("node1", "ls /etc/minos/jobs | grep -c other || true") == "0"


def test_jobs_survive_faults(killed):
    """A telling case of the fault matrix (tests/faults), which has sixty; other labs may slow this one down.

    A machine that is gone without a word while a checkpoint is written, and stays away: the others go on without it.
    What becomes of a worker that dies is above, and that its weights are equal to the last bit in tests/unit/training.

    Not the last one here: with two files at a time, the next is given away when the last test of a file begins, and who
    has finished meanwhile has nothing to do.
    """
    rows = list(matrix.run(Cluster(LAB), chosen("power_lost", "save"), slack=3))
    assert [row.result for row in rows] == ["pass"] * 2, report.table(rows)


@pytest.fixture
def gated_hub():
    """A hub that only the head can reach; yields its address and the token that it wants."""
    token = "hf_" + hashlib.sha256(os.urandom(16)).hexdigest()
    files = [
        ROOT / "tests/lab/gated_hub.py",
        *(ROOT / "tests/unit/training" / n for n in ("hub.py", "tiny_tokenizer.py")),
    ]
    on("node1", "mkdir -p /tmp/hub")
    for file in files:
        on("node1", f"cat > /tmp/hub/{file.name} <<'END'\n{file.read_text()}\nEND")
    digest = hashlib.sha256(token.encode()).hexdigest()
    unit, command = f"hub-{digest[:8]}", f"/opt/minos/envs/dist-train/bin/python /tmp/hub/gated_hub.py {digest}"
    on("node1", f"systemd-run --quiet --collect --unit={unit} {command}")
    for _ in range(120):
        if found := re.search(r"^http://\S+", on("node1", f"journalctl --no-pager -o cat -u {unit}"), re.MULTILINE):
            break
        time.sleep(0.5)
    yield found[0], token
    on("node1", f"systemctl stop {unit}")


def test_a_gated_model_is_fetched_once_and_its_token_is_nowhere(gated_hub, killed, monkeypatch):
    """And two nodes train with two processes each, while the third is left alone."""
    url, token = gated_hub
    settings = "nnodes=2 nproc_per_node=2 job=gated model=acme/tiny-gated steps=5 heldout_rows=6 sample_tokens=0"
    command = ["train.yml", "-vvv", "-e", settings, "-e", json.dumps({"job_prepare_environment": {"HF_ENDPOINT": url}})]
    without = playbook(*command, check=False)
    assert without.returncode != 0
    assert "model: acme/tiny-gated is gated" in state("gated")["reason"]
    assert "huggingface_token" in without.stdout + without.stderr
    monkeypatch.setitem(LAB.variables, "HF_TOKEN", token)
    done = playbook(*command)
    ended = state("gated")
    assert (ended["state"], ended["nodes"], ended["world_size"]) == ("done", ["node1", "node2"], 4)
    assert set(recap(done)) == {"localhost", "node1", "node2"}
    assert "gated.env" not in on("node3", "ls /etc/minos/jobs").split()
    assert on("node1", "ls /srv/minos/models") == "acme--tiny-gated"
    assert token not in done.stdout + done.stderr
    for node in NODES:
        search = f"grep -rlF --binary-files=text {token} / --exclude-dir=proc --exclude-dir=sys --exclude-dir=opt"
        assert on(node, f"{search} 2>/dev/null || true") == ""
        assert token not in on(node, "journalctl --no-pager --all --output=json")


def verb(name: str, *given: str, check: bool = True) -> tuple[subprocess.CompletedProcess[str], dict]:
    """Run a verb; what it says, and the document that it writes."""
    file = ROOT / "build" / f"{name}.json"
    file.unlink(missing_ok=True)
    words = [word for pair in (*given, f"output={file}") for word in ("-e", pair)]
    done = playbook(f"playbooks/{name}.yml", *words, check=check)
    return done, json.loads(file.read_text()) if file.exists() else {}


def test_the_verbs_answer(killed, tmp_path):
    """A job from its start to its end and out of the world, by the verbs alone."""
    playbook("train.yml", "-e", "nnodes=3 job=verbs steps=90 save_every=10 heldout_rows=6 sample_tokens=0 follow=false")
    running = verb("status")[1]["jobs"][0]
    assert (running["job"], running["state"], running["planned_nodes"]) == ("verbs", "running", NODES)
    assert {node["does"] for node in running["nodes"].values()} == {"trains"}
    stopped = verb("stop")[1]
    assert stopped["stopped"] and 0 < stopped["state"]["step"] < 90
    assert [len(workers(node)) + len(agents(node)) for node in NODES] == [0, 0, 0]
    resumed = verb("resume", "job=verbs")[1]
    assert resumed["nodes"] == NODES and resumed["run_id"] != stopped["state"]["run_id"]
    for name, given in (("resume", "job=verbs"), ("clean", "job=verbs"), ("export", f"job=verbs to={tmp_path}")):
        refused = verb(name, *given.split(), check=False)[0]
        said = (refused.stdout + refused.stderr).lower()
        assert refused.returncode != 0 and re.search(r"job verbs is (starting|running)", said)
    watched, end = verb("watch", "job=verbs", "interval=1")
    assert re.search(r"^step \d+/90  loss", watched.stdout, re.MULTILINE)
    assert "Job verbs: done at step 90" in watched.stdout
    assert end["state"]["resumed_at"] == stopped["state"]["step"]
    assert verb("stop", "job=verbs")[1]["state"]["state"] == "done", "that it was asked for twice does no harm"
    logs = verb("logs", "job=three", "lines=200")[0]
    assert all(f"node={node}" in logs.stdout for node in NODES)


def test_the_verbs_answer_with_a_node_off(killed, tmp_path):
    LAB.command("cable", "node2", "down")
    try:
        export = f"job=verbs to={tmp_path}"
        given = {"status": "", "jobs": "", "logs": "job=three", "clean": "keep=1", "export": export}
        for name, words in given.items():
            done, document = verb(name, *words.split())
            assert "node2: it does not answer" in done.stdout or name == "export"
            assert document and all(counts["unreachable"] == 0 for counts in recap(done).values())
    finally:
        LAB.command("cable", "node2", "up")
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "verbs", check=True)
    assert (tmp_path / "verbs/model").is_dir() and (tmp_path / "verbs/plots/loss.png").exists()
    assert len(on("node1", f"ls {JOBS}/three/checkpoints | grep step-").split()) == 1
    verb("clean", "job=verbs", "everything=true", "sure=true")
    for node in NODES:
        ours = f"{JOBS}/verbs {LOCAL}/verbs /etc/minos/jobs/verbs.env /etc/systemd/system/*.wants/*@verbs*"
        assert on(node, f"ls -d {ours} 2>/dev/null; true") == ""
