from __future__ import annotations

import json

import pytest
import yaml

from training import demo_data
from training.demo_data import is_current, is_deprecated, main, pairs_of

EXAMPLES = """
# a remark
- name: Install the web server
  ansible.builtin.apt:
    name: nginx   # newest
    state: present
  become: true

- ansible.builtin.debug:
    msg: before the name
  name: Say something first
- name: short
  a.b.c:
- name: A whole play is no task
  hosts: all
- name: Only a name is no task
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo-data")
    assert main(["--output", str(output)]) == 0
    return output


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_name_becomes_the_instruction_and_the_rest_the_answer():
    assert list(pairs_of(EXAMPLES)) == [
        (
            "Install the web server",
            "ansible.builtin.apt:\n  name: nginx   # newest\n  state: present\nbecome: true\n",
        ),
        ("Say something first", "ansible.builtin.debug:\n  msg: before the name\n"),
    ]


@pytest.mark.parametrize("text", ["", "just words", "- [", "- name: Uses a vault\n  a: !vault x\n"])
def test_examples_without_usable_tasks_give_nothing(text):
    assert list(pairs_of(text)) == []


def test_deprecated_modules_are_recognised():
    assert is_deprecated("module: x\ndeprecated:\n  why: old\n")
    assert not is_deprecated("module: x\n")


def test_split_is_by_module_and_disjoint(made):
    train, heldout = rows(made / "train.jsonl"), rows(made / "heldout.jsonl")
    assert not {row["module"] for row in train} & {row["module"] for row in heldout}
    pairs = [(row["instruction"], row["response"]) for row in train + heldout]
    assert len(set(pairs)) == len(pairs)
    assert 0.05 < len(heldout) / len(pairs) < 0.2
    assert len(pairs) > 2000


def test_answers_are_tasks_of_their_module(made):
    some = rows(made / "train.jsonl")[::25]
    assert len(some) > 50
    for row in some:
        task = yaml.safe_load(row["response"])
        assert isinstance(task, dict)
        assert "name" not in task
    named = sum(row["module"] in yaml.safe_load(row["response"]) for row in some)
    assert named > 0.9 * len(some)


def test_sources_tell_what_it_was_made_from(made):
    sources = json.loads((made / "sources.json").read_text())
    assert sources["train_pairs"] == len(rows(made / "train.jsonl"))
    assert sources["heldout_pairs"] == len(rows(made / "heldout.jsonl"))
    assert sources["ansible"] == demo_data.importlib.metadata.version("ansible")
    assert sources["modules"] > 500


def test_second_call_changes_nothing_and_says_so(made, capsys):
    before = {file.name: file.stat().st_mtime_ns for file in made.iterdir()}
    assert main(["--output", str(made)]) == 0
    assert capsys.readouterr().out.startswith("unchanged: ")
    assert {file.name: file.stat().st_mtime_ns for file in made.iterdir()} == before


def test_a_changed_file_is_noticed(made, tmp_path):
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert is_current(tmp_path)
    with (tmp_path / "train.jsonl").open("a") as stream:
        stream.write("\n")
    assert not is_current(tmp_path)


def test_without_ansible_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_data.importlib.util, "find_spec", lambda name: None)
    assert main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "demo data: the Python package `ansible` is not installed here; pip install ansible==12.3.0\n"
    )
