from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from training import settings
from training.config import Config, ConfigError, load, main

ROOT = Path(__file__).parents[3]
GOOD = "data_train: a.jsonl\n"

# (what is added to a good file, key, what is wrong, what to write instead)
BAD_FILES = [
    ("lrr: 0.1", "lrr", "unknown key", "did you mean lr?"),
    ("zzzz: 1", "zzzz", "unknown key", "known keys: attention, backend, "),
    ("steps: '10x'", "steps", "'10x' is a str", "write a whole number such as 10"),
    ("steps: 1.5", "steps", "1.5 is a float", "write a whole number such as 10"),
    ("steps: true", "steps", "True is a bool", "write a whole number such as 10"),
    ("steps: -1", "steps", "-1 cannot be used", "write 0 or more"),
    ("epochs: 0", "epochs", "0 cannot be used", "write 1 or more"),
    ("lr: fast", "lr", "'fast' is a str", "write a number such as 0.1"),
    ("lr: 0", "lr", "0.0 cannot be used", "write a number above 0 and at most 1, such as 0.0003"),
    ("lr: 2", "lr", "2.0 cannot be used", "write a number above 0 and at most 1, such as 0.0003"),
    ("lr: .nan", "lr", "nan is not finite", "write a number such as 0.1"),
    ("lr: .inf", "lr", "inf is not finite", "write a number such as 0.1"),
    ("compile: maybe", "compile", "'maybe' is a str", "write true or false"),
    ("model: 7", "model", "7 is a int", "write text; quote it"),
    ("model: ''", "model", "'' cannot be used", "write scratch, a directory or a hub id"),
    ("model: ~/llama", "model", "'~/llama' cannot be used", "write the whole path"),
    ("backend: mpi", "backend", "'mpi' cannot be used", "write one of auto, gloo, nccl"),
    ("tuning: lorra", "tuning", "'lorra' cannot be used", "write one of full, lora, qlora"),
    ("lora_rank: 8", "lora_rank", "8 cannot be used", "write tuning lora or qlora, or 16 here"),
    (
        "lora_targets: q_proj",
        "lora_targets",
        "'q_proj' cannot be used",
        "write tuning lora or qlora, or all-linear here",
    ),
    ("precision: fp16", "precision", "'fp16' cannot be used", "write one of fp32, bf16"),
    ("attention: varlen", "attention", "'varlen' cannot be used", "precision bf16: write that, or auto here"),
    ("keep: 1", "keep", "1 cannot be used", "write 2 or more"),
    ("beta2: 1", "beta2", "1.0 cannot be used", "write a number from 0 to below 1"),
    ("dropout: 1.0", "dropout", "1.0 cannot be used", "write a number from 0 to below 1"),
    ("min_lr_fraction: 2", "min_lr_fraction", "2.0 cannot be used", "write a number from 0 to 1"),
    ("bad_rows: 5", "bad_rows", "5.0 cannot be used", "write a number from 0 to 1"),
    ("global_batch: 30", "global_batch", "30 cannot be used", "must be a multiple of micro_batch (4), such as 28"),
    ("scratch_hidden: 100", "scratch_hidden", "100 cannot be used", "must be a multiple of 2 x scratch_heads (8)"),
    ("seq_len: 4", "seq_len", "4 cannot be used", "write 8 or more"),
    ("profile_steps: 5\nsteps: 12", "profile_steps", "5 cannot be used", "write steps 15 or more, or 0 here"),
    ("prompt_template: hello", "prompt_template", "'hello' cannot be used", "must contain {instruction}"),
    (
        "prompt_template: '{instruction} {context}'",
        *("prompt_template", "'{instruction} {context}' cannot be used"),
        "{context} is never filled in: write {instruction} or {input}",
    ),
    (
        "data_heldout: b.txt",
        "data_heldout",
        "'b.txt' cannot be used",
        "must be of the same kind as data_train (a.jsonl)",
    ),
    ("data_heldout: b.csv", "data_heldout", "'b.csv' cannot be used", "write a path that ends in .jsonl, "),
    ("data_heldout: hub:b", "data_heldout", "'hub:b' cannot be used", "only a data_train of hub:NAME has such"),
    ("data_hub_config: x", "data_hub_config", "'x' cannot be used", "leave it out"),
    ("data_train: b.jsonl", "data_train", "is there twice (again in line 2)", "delete one"),
    ("hf_token: abc", "hf_token", "holds a token", "delete it and set HF_TOKEN in the environment"),
]
OTHER_DATA = [
    ("data_train: 'hub:'\n", "data_train", "'hub:' cannot be used", "write hub:NAME"),
    ("data_train: hub:a\ndata_heldout: b.jsonl\n", "data_heldout", "'b.jsonl'", "set data_split_heldout"),
    ("data_train: a.txt\ndata_format: chat\n", "data_format", "'chat' cannot be used", "write text"),
    ("data_train: ''\n", "data_train", "'' cannot be used", "a directory, or hub:NAME"),
]


@pytest.mark.parametrize(
    ("text", "key", "problem", "fix"),
    [(GOOD + text + "\n", *expected) for text, *expected in BAD_FILES] + OTHER_DATA,
    ids=[text.strip().replace("\n", ", ") for text, *_ in BAD_FILES + OTHER_DATA],
)
def test_bad_file_gives_one_line_with_file_key_and_fix(text, key, problem, fix, tmp_path, capsys):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    assert main([str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"{file}: {key}: {problem}")
    assert fix in err.removeprefix(f"{file}: {key}: {problem}")


def test_a_token_is_refused_wherever_it_stands_and_never_shown(tmp_path, capsys):
    token = "hf_" + "aB3" * 10
    for key in ("model", "huggingface_token", "prompt_template"):
        file = tmp_path / "bad.yaml"
        file.write_text(f"{GOOD}{key}: {token}\n")
        assert main([str(file)]) == 2
        assert main([str(file), f"{key}={token}"]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), err.count(f"{key}: holds a token")) == ("", 2, 2)
        assert token not in err


@pytest.mark.parametrize(
    "text",
    [
        "data_train: my.data/\ndata_heldout: heldout.jsonl\n",
        "data_train: hub:Salesforce/wikitext\ndata_hub_config: wikitext-2-raw-v1\ndata_split_heldout: test\n",
        "data_train: a.jsonl\nprompt_template: '{instruction} {{ item }} {input}'\n",
        "data_train: a.jsonl\ntuning: qlora\nlora_rank: 8\n",
        "recipe: hello\nsteps: 5\n",
    ],
)
def test_what_is_allowed(text, tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text(text)
    assert load(load_to(file, tmp_path)) == load(file)


def load_to(file: Path, directory: Path) -> Path:
    """The effective config of `file`, written out."""
    output = directory / "effective.yaml"
    assert main([str(file), "--output", str(output)]) == 0
    return output


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps", "command line: steps: is not a setting; write key=value"),
        ("stepz=4", "command line: stepz: unknown key; did you mean steps?"),
        ("steps=ten", "command line: steps: 'ten' is a str"),
        ("keep=0", "command line: keep: 0 cannot be used"),
    ],
)
def test_bad_override_names_the_command_line(override, expected, tmp_path, capsys):
    file = tmp_path / "good.yaml"
    file.write_text(GOOD)
    assert main([str(file), override]) == 2
    assert capsys.readouterr().err.startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        (b"- 1\n", "holds a list"),
        (b"", "data_train: '' cannot"),
        (b"\xff\xfe", "cannot be read"),
        (b"steps: [1\n", "is not valid YAML in line 2"),
    ],
)
def test_unusable_files(content, expected, tmp_path, capsys):
    file = tmp_path / "x.yaml"
    if content is not None:
        file.write_bytes(content)
    assert main([str(file)]) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert err.count("\n") == 1


def test_overrides_lie_over_the_file_and_keep_their_types(tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text(GOOD + "lr: 3e-4\nsteps: 5\nweight_decay: 1\n")
    loaded = load(file, ["steps=7", "data_train=1.jsonl", "clip_norm=2", "lr=1e-3"])
    assert (loaded.steps, loaded.data_train, loaded.clip_norm, loaded.lr) == (7, "1.jsonl", 2.0, 0.001)
    assert loaded.weight_decay == 1.0
    assert load(file).lr == 0.0003


def test_other_data_are_not_measured_on_the_held_out_rows_of_the_file(tmp_path, capsys):
    file = tmp_path / "demo.yaml"
    file.write_text(GOOD + "data_heldout: heldout.jsonl\n")
    assert main([str(file), "data_train=mine.jsonl"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{file}: data_heldout: 'heldout.jsonl' goes with the file's own data_train")
    assert said.endswith("write data_heldout=FILE there too, or data_heldout= to keep a tenth of the rows aside\n")
    for typed, used in (("data_heldout=", ""), ("data_heldout=rest.jsonl", "rest.jsonl")):
        assert load(file, ["data_train=mine.jsonl", typed]).data_heldout == used
    assert load(file, ["data_train=a.jsonl", "steps=2"]).data_heldout == "heldout.jsonl"
    file.write_text("data_heldout: heldout.jsonl\n")
    assert load(file, ["data_train=mine.jsonl"]).data_heldout == "heldout.jsonl", "whose else?"


def test_effective_config_is_complete_sorted_and_loads_to_itself(tmp_path):
    file, output = tmp_path / "good.yaml", tmp_path / "out.yaml"
    file.write_text(GOOD + 'prompt_template: "# {instruction}\\n"\nlr: 3e-5\n')
    assert main([str(file), "steps=3", "--output", str(output)]) == 0
    content = yaml.safe_load(output.read_text())
    assert list(content) == sorted(field.name for field in dataclasses.fields(Config))
    again = load(output)
    assert again == load(file, ["steps=3"])
    assert again.to_yaml() == output.read_text()
    assert again.sha256() == load(file, ["steps=3"]).sha256() != load(file).sha256()


def test_every_field_has_a_docstring_of_its_own():
    described = set()
    for group in (node for node in ast.parse(inspect.getsource(settings)).body if isinstance(node, ast.ClassDef)):
        for node, following in itertools.pairwise(group.body):
            text = isinstance(following, ast.Expr) and isinstance(following.value.value, str)
            if isinstance(node, ast.AnnAssign) and text:
                described.add(node.target.id)
    assert described == {field.name for field in dataclasses.fields(Config)}


def test_what_a_later_start_may_change_is_no_part_of_the_identity():
    names = {field.name for field in dataclasses.fields(Config)}
    assert names > settings.MAY_CHANGE
    assert names - settings.MAY_CHANGE == set(Config(data_train="a.jsonl").identity())
    before, after = Config(data_train="a.jsonl"), Config(data_train="b.jsonl", lr=0.5, keep=9, attention="mask")
    assert before.identity() == after.identity()
    for changed in ({"seed": 2}, {"global_batch": 64}, {"packing": False}, {"tuning": "lora"}):
        assert before.identity() != dataclasses.replace(before, **changed).identity()


def test_needs_no_torch():
    code = "import sys, training.config, training.state, training.demo_data; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_python_callers_get_the_same_error():
    with pytest.raises(ConfigError, match="no such file"):
        load("/nowhere/x.yaml")
