"""What train.yml is asked for: refused with one line, or turned into a plan, without a node."""

import tarfile
from pathlib import Path

import pytest
import yaml
from paths import ROOT, action_plugin

plan_job = action_plugin("job_plan", "plan_job")
NODES = ["node1", "node2", "node3"]


@pytest.fixture
def task_vars():
    shared = {"cluster_state_path": "/var/lib/minos", "cluster_shared_path": "/srv/minos"}
    return {
        "groups": {
            "all": NODES,
            "ungrouped": [],
            "cluster": NODES,
            "gpu_nodes": NODES,
            "head": ["node1"],
            "far": ["x"],
        },
        "hostvars": {name: dict(shared) for name in NODES},
    }


@pytest.fixture
def text(tmp_path):
    """A config of a user's own, with data of their own."""
    (tmp_path / "my.txt").write_text("words\n" * 100)
    file = tmp_path / "mine.yaml"
    file.write_text(f"data_train: {tmp_path}/my.txt\nsteps: 7\n")
    return file


def plan(task_vars, **given):
    """What `ansible-playbook train.yml -e ...` plans with these variables."""
    defaults = {"nnodes": "3", "group": "gpu_nodes", "config": "training/configs/demo.yaml", "job": ""}
    defaults |= {"nnodes_min": 1, "node_grace": 60}
    defaults |= dict.fromkeys(("script", "script_dir", "script_args", "requirements"), "")
    return plan_job.plan({name: given.get(name, value) for name, value in defaults.items()}, given, task_vars)


BAD = {
    "none": ({"nnodes": ""}, "nnodes="),
    "zero": ({"nnodes": "0"}, "nnodes=0: write a whole number from 1 to 3"),
    "too many": ({"nnodes": "4"}, "nnodes=4: write a whole number from 1 to 3"),
    "letters": ({"nnodes": "x"}, "nnodes=x"),
    "negative": ({"nnodes": "-1"}, "nnodes=-1"),
    "half": ({"nnodes": "1.5"}, "nnodes=1.5"),
    "no fewest": ({"nnodes_min": 0}, "nnodes_min=0: write a whole number from 1 to 3 (nnodes)"),
    "fewest of more": ({"nnodes": "2", "nnodes_min": 3}, "nnodes_min=3: write a whole number from 1 to 2 (nnodes)"),
    "no grace": ({"node_grace": "1m"}, "node_grace=1m: write the seconds to wait for a node that is lost"),
    "unknown group": (
        {"group": "gpus"},
        "group=gpus: there is no such group in the inventory; it has cluster",
    ),
    "strangers": ({"group": "far", "nnodes": "1"}, "x is no member of the group cluster"),
    "no config": ({"config": "nope.yaml"}, "no such file"),
    "unknown name": ({"stepz": "3"}, "-e stepz: nothing has this name; did you mean steps?"),
    "bad switch": ({"nccl_debug": "yes please"}, "-e nccl_debug=yes please: write true or false"),
    "bad value": ({"steps": "many"}, "steps: 'many' is a str"),
    "no data": ({"data_train": "nowhere.txt", "data_heldout": ""}, "data_train: there is no file or directory"),
    "no data in it": ({"data_train": "docs", "data_heldout": ""}, "data_train: there is no .jsonl,"),
    "a model here": ({"model": "./my-model"}, "copy it to /srv/minos/models/my-model on the head and write model=/srv"),
    "a directory here": ({"tokenizer": "docs"}, "tokenizer: docs is a path of this machine"),
    "arguments without a script": (
        {"script_args": "--x"},
        "-e script_args: that is for a script of your own; write -e",
    ),
    "job name": ({"job": "../evil"}, "job=../evil: write a name of small letters"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_refused_with_one_line(changes, message, task_vars):
    with pytest.raises(ValueError) as refused:
        plan(task_vars, **changes)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", ["0", "two", -1])
def test_processes_of_a_node(value, task_vars, text):
    task_vars["hostvars"]["node2"]["nproc_per_node"] = value
    with pytest.raises(ValueError, match="node2: nproc_per_node"):
        plan(task_vars, config=text)


def test_an_unknown_key_in_the_file_is_refused_with_the_file(task_vars, text):
    text.write_text(text.read_text() + "stepps: 3\n")
    with pytest.raises(ValueError, match=r"mine\.yaml.*stepps"):
        plan(task_vars, config=text)


def test_the_first_nodes_in_the_inventorys_order(task_vars, text):
    task_vars["groups"]["gpu_nodes"] = ["node3", "node1", "node2"]
    assert plan(task_vars, config=text, nnodes=2)["nodes"] == ["node3", "node1"]


def test_settings_are_single_variables(task_vars, text):
    planned = plan(task_vars, config=text, steps="9", lr=1e-3)
    assert (planned["steps"], yaml.safe_load(planned["config"])["lr"]) == (9, 0.001)


def test_the_plan_names_the_data_by_its_content(task_vars, text):
    first = plan(task_vars, config=text)
    assert first["job"] == "mine"
    assert yaml.safe_load(first["config"])["data_train"] == first["data"][0]["dest"]
    assert first["data"][0]["dest"].startswith("/var/lib/minos/jobs/mine/data/")
    (text.parent / "my.txt").write_text("other words\n")
    assert plan(task_vars, config=text)["config_sha256"] != first["config_sha256"]


def test_a_directory_of_data_is_named_by_what_is_in_it(task_vars, tmp_path):
    for name in ("b.jsonl", "a.jsonl", "deeper/c.jsonl", "README.md"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    given = {"data_train": str(tmp_path / "data"), "data_heldout": ""}
    planned = plan(task_vars, **given)
    place = Path(yaml.safe_load(planned["config"])["data_train"])
    assert place.name.endswith("-data")
    assert [Path(each["src"]).name for each in planned["data"]] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert planned["data"][2]["dest"] == str(place / "deeper/c.jsonl")
    (tmp_path / "data/b.jsonl").rename(tmp_path / "data/d.jsonl")
    assert plan(task_vars, **given)["config_sha256"] != planned["config_sha256"]


@pytest.mark.parametrize("value", ["hub:Salesforce/wikitext", "/srv/minos/data/book.txt"])
def test_what_the_head_finds_by_itself_is_not_copied(value, task_vars):
    planned = plan(task_vars, data_train=value, data_heldout="", model="meta-llama/Llama-3.2-1B", tokenizer="/srv/t")
    assert planned["data"] == []
    assert yaml.safe_load(planned["config"])["data_train"] == value


def test_the_plan_names_the_recipe(task_vars, text):
    assert plan(task_vars, config=text)["recipe"] == "finetune"
    planned = plan(task_vars, config="training/configs/hello.yaml")
    assert (planned["recipe"], planned["job"], planned["data"]) == ("hello", "hello", [])


def test_the_code_is_packed_the_same_way_every_time(task_vars, text):
    paths = {plan(task_vars, config=text)["code"]["archive"] for _ in range(2)}
    assert len(paths) == 1
    with tarfile.open(paths.pop()) as archive:
        names = [entry.name for entry in archive if not entry.isdir()]
        assert {entry.mode for entry in archive if entry.isdir()} == {0o755}
    assert {"training/finetune.py", "training/data/order.py", "training/models/fetch.py"} < set(names)
    assert all(name.endswith(".py") for name in names[:-1])
    assert names[-1] == "complete", "the mark of a whole archive comes last"
    assert (ROOT / "training/finetune.py").exists() and Path(names[0]).parts[0] == "training"
