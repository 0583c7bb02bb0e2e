"""`train.yml -e script=...`: what is copied, with which arguments, and what is refused with one line."""

import os
import tarfile
from pathlib import Path

import pytest
import yaml
from ansible.parsing.splitter import parse_kv
from paths import ROOT, action_plugin

plan_job = action_plugin("job_plan", "plan_job")

from job_planning.arguments import words  # noqa: E402  (plan_job has said where it lies)
from job_planning.files import files_of  # noqa: E402
from job_planning.requirements import extra_packages  # noqa: E402

NODES = ["node1", "node2"]
CLUSTER = {"cluster_state_path": "/var/lib/minos", "cluster_shared_path": "/srv/minos", "python_env_variant": "cpu"}
TASK_VARS = {
    "groups": {"all": NODES, "cluster": NODES, "gpu_nodes": NODES},
    "hostvars": {name: dict(CLUSTER) for name in NODES},
}
LOCK = (ROOT / "training/requirements-cpu.txt").read_text()


def plan(*typed):
    """What `ansible-playbook train.yml -e ... -e ...` plans."""
    given = {}
    for each in typed:
        given |= parse_kv(each)
    options = {"nnodes": 2, "nnodes_min": 1, "node_grace": 60, "group": "gpu_nodes"}
    options |= {"config": "training/configs/demo.yaml", "job": ""}
    options |= dict.fromkeys(("script", "script_dir", "script_args", "requirements"), "")
    arguments = {name: given.get(name, value) for name, value in options.items()}
    return plan_job.plan(arguments, given, TASK_VARS, typed)


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "mine" / "My DDP.py"
    file.parent.mkdir()
    file.write_text("import torch\nfrom training.checkpoints import Checkpoints\n")
    return file


@pytest.fixture
def asked(script):
    return f"script='{script}'"


def names(planned):
    with tarfile.open(planned["archives"][1]["archive"]) as packed:
        return {each.name: each for each in packed.getmembers()}


def test_a_script_goes_alone_under_its_own_name(asked):
    planned = plan(asked)
    assert (planned["job"], planned["recipe"], planned["data"]) == ("my-ddp", "script", [])
    assert list(names(planned)) == ["My DDP.py", "complete"]
    settings = yaml.safe_load(planned["config"])
    assert settings["script"].endswith("/My DDP.py")
    place = f"/var/lib/minos/jobs/my-ddp/{settings['script'].partition('/')[0]}"
    assert planned["archives"] == [planned["code"], {"archive": planned["archives"][1]["archive"], "path": place}]


def test_another_content_is_another_job(asked, script):
    first = plan(asked)
    assert plan(asked)["config_sha256"] == first["config_sha256"]
    script.write_text("pass\n")
    assert plan(asked)["config_sha256"] != first["config_sha256"]


def test_its_folder_goes_with_it_but_for_what_is_not_its(asked, script):
    folder = script.parent
    (folder / "parts").mkdir()
    (folder / "parts/net.py").write_text("")
    (folder / "run.sh").write_text("")
    (folder / "run.sh").chmod(0o755)
    (folder / "data").symlink_to("/srv/minos/data")
    (folder / "net.py").symlink_to("parts/net.py")
    os.mkfifo(folder / "pipe")
    for name in (".env", ".git/config", "__pycache__/a.pyc", "env/pyvenv.cfg", "env/lib/x.py", "old.pyc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("secret")
    packed = names(plan(asked, f"script_dir={folder}"))
    assert sorted(packed) == ["My DDP.py", "complete", "data", "net.py", "parts", "parts/net.py", "run.sh"]
    assert packed["parts"].isdir() and packed["parts"].mode == 0o755, "whatever the umask of who unpacks it"
    assert packed["data"].linkname == "/srv/minos/data", "a link to a folder stays one"
    assert packed["net.py"].isfile()
    assert packed["run.sh"].mode == 0o755


def test_a_folder_that_a_link_leads_to_is_not_forgotten(asked, script):
    """Within script_dir it goes along; one beside it, as in a repository of several projects, would be missed."""
    folder = script.parent
    (folder / "parts").mkdir()
    (folder / "parts/net.py").write_text("")
    (folder / "nets").symlink_to("parts")
    assert names(plan(asked, f"script_dir={folder}"))["nets"].linkname == "parts"
    (folder.parent / "common").mkdir()
    (folder / "utils").symlink_to("../common")
    with pytest.raises(ValueError, match=r"utils is a link to .*/common, which is not copied with it: put that folder"):
        plan(asked, f"script_dir={folder}")


def test_a_script_in_a_hidden_folder_would_not_be_there(asked, script):
    hidden = script.parent / ".work"
    hidden.mkdir()
    (hidden / "train.py").write_text("")
    with pytest.raises(ValueError, match="lies in a folder that is hidden, which is not copied"):
        plan(asked, f"script={hidden}/train.py", f"script_dir={script.parent}")


ARGUMENTS = {
    "none": ([], []),
    "one word": (["script_args=--fast"], ["--fast"]),
    "quoted": (["script_args='--epochs 3 --lr=0.1'"], ["--epochs", "3", "--lr=0.1"]),
    "as one types it": (["script_args=--epochs 3 --lr=0.1"], ["--epochs", "3", "--lr=0.1"]),
    "a word with a blank": (["""script_args='--name "two words"'"""], ["--name", "two words"]),
    "the last one counts": (["script_args=--a 1", "script_args=--b 2"], ["--b", "2"]),
}


@pytest.mark.parametrize(("typed", "words"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_its_arguments_are_what_was_typed(typed, words, asked):
    assert yaml.safe_load(plan(asked, *typed)["config"])["arguments"] == words


def test_a_list_of_arguments_is_taken_as_it_is():
    assert words(["--n", 3], []) == (["--n", "3"], set())


BAD = {
    "no file": (["script=nope.py"], f"script=nope.py: there is no file {ROOT}/nope.py on this machine"),
    "a folder": (["script=training"], "there is no file"),
    "no Python": (["script=README.md"], "unterminated string literal (detected at line 4); a script is a Python file"),
    "a setting of ours": (["steps=5"], "-e steps: that is for Minos's own training; a script takes its settings by"),
    "a config": (["config=training/configs/hello.yaml"], "-e config: that is for Minos's own training"),
    "an unknown name": (["script_arg=1"], "-e script_arg: nothing has this name; did you mean script_args?"),
    "swallowed": (
        ["script_args=--epochs 3 lr=0.1"],
        "Ansible takes lr= for a variable; write quotes",
    ),
    "half a quote": (["script_args='--name \"x'"], "no closing quotation"),
    "no folder": (["script_dir=nope"], "script_dir=nope: there is no folder"),
    "another folder": (["script_dir=docs"], "is not in it"),
    "no packages": (["requirements=nope.txt"], "requirements=nope.txt: there is no file"),
    "a bad name": (["job=My_Job"], "job=My_Job: write a name of small letters"),
}


@pytest.mark.parametrize(("typed", "message"), BAD.values(), ids=BAD)
def test_refused_with_one_line(typed, message, asked):
    with pytest.raises(ValueError) as refused:
        plan(asked, *typed)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["complete", "complete/table.csv"])
def test_a_name_that_a_mark_of_ours_has_on_the_nodes_is_refused(name, asked, script):
    (script.parent / name).parent.mkdir(exist_ok=True)
    (script.parent / name).write_text("of the owner")
    with pytest.raises(ValueError, match=rf"^{name}: on the nodes a mark of Minos has the name complete"):
        plan(asked, f"script_dir={script.parent}")


def test_a_module_beside_it_is_not_forgotten(asked, script):
    (script.parent / "net").mkdir()
    script.write_text("def later():\n    from net.parts import Net\n")
    plan(asked)
    (script.parent / "net/parts.py").write_text("")
    with pytest.raises(ValueError, match=r"it imports net, which lies beside it; write -e script_dir=.*mine too"):
        plan(asked)
    plan(asked, f"script_dir={script.parent}")


def test_what_every_job_gets_is_not_asked_for(script):
    """A script at the root of this repository has training/ beside it."""
    folder = script.parent
    (folder / "training").mkdir()
    (folder / "training/checkpoints.py").write_text("")
    assert len(files_of(script, None, ours=folder)) == 1
    with pytest.raises(ValueError, match="it imports training, which lies beside it"):
        files_of(script, None, ours=ROOT)


def test_archives_of_days_past_are_taken_away(asked):
    old = ROOT / "build/own-0123456789ab.tar"
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(b"")
    todays = plan(asked)["archives"][1]["archive"]
    assert old.exists()
    os.utime(old, (0, 0))
    plan(asked)
    assert not old.exists() and Path(todays).exists()


def test_a_folder_that_is_too_large_is_refused_with_the_reason(asked, script, monkeypatch):
    whole = f"script_dir={script.parent}"
    with (script.parent / "train.bin").open("wb") as stream:
        stream.truncate(60_000_000)
    with pytest.raises(ValueError, match=r"more than 50 MB \(train.bin alone has 60\); data belong into the shared"):
        plan(asked, whole)
    (script.parent / "train.bin").unlink()
    for number in range(5000):
        (script.parent / f"{number}.txt").touch()
    with pytest.raises(ValueError, match="more than 5000 files; give the script a folder of its own"):
        plan(asked, whole)


@pytest.fixture
def packages(tmp_path):
    return tmp_path / "extra.txt"


def test_packages_have_a_place_named_by_what_they_are(asked, packages):
    packages.write_text("# what we need\neinops>=0.8  # shapes\n\ntorch\n")
    first = plan(asked, f"requirements={packages}")["packages"]
    assert first["wanted"] == "einops>=0.8\ntorch\n"
    assert first["path"].startswith("/var/lib/minos/jobs/my-ddp/packages-")
    assert first["shared"] == first["path"].replace("/var/lib/minos", "/srv/minos")
    packages.write_text("einops>=0.8\n\ntorch\n")
    assert plan(asked, f"requirements={packages}")["packages"] == first
    packages.write_text("einops\n")
    other = plan(asked, f"requirements={packages}")
    assert other["packages"]["path"] != first["path"]
    assert other["config_sha256"] != plan(asked)["config_sha256"]


BAD_PACKAGES = {
    "empty": ("# nothing\n", ": there is no package in it"),
    "an option": ("einops\n-r more.txt\n", ":2: '-r more.txt' is no package; write names with versions"),
    "an index": ("--index-url https://example.org/simple\n", "python_env_index_url in the inventory"),
    "a path": ("./mypackage\n", ":1: './mypackage' is no package"),
    "an address": ("x @ git+https://example.org/x\n", "is an address; write a name with a version"),
    "another torch": ("einops\ntorch<2\n", ":2: 'torch<2' would change the locked environment, which has torch 2."),
    "another spelling": ("Typing_Extensions==4.0\n", "would change the locked environment"),
}


@pytest.mark.parametrize(("text", "message"), BAD_PACKAGES.values(), ids=BAD_PACKAGES)
def test_packages_that_cannot_be_are_refused(text, message, packages):
    packages.write_text(text)
    with pytest.raises(ValueError) as refused:
        extra_packages(packages, LOCK)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_locked_version_may_be_named(packages):
    packages.write_text('torch==2.13.0\nnumpy>=1\nnumpy<1; python_version < "3"\n')
    assert extra_packages(packages, LOCK).count("\n") == 3
