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

from training import config
from training.config import Config, ConfigError, load, main

ROOT = Path(__file__).parents[3]
GOOD = "data_train: a.jsonl\n"

BAD_FILES = [
    ("lrr: 0.1\n", "lrr: unknown key; did you mean lr?"),
    ("zzzz: 1\n", "zzzz: unknown key; known keys: backend, "),
    ("steps: '10x'\n", "steps: '10x' is a str; write a whole number"),
    ("steps: 1.5\n", "steps: 1.5 is a float; write a whole number"),
    ("steps: true\n", "steps: True is a bool; write a whole number"),
    ("steps: -1\n", "steps: -1 cannot be used; write 0 or more"),
    ("epochs: 0\n", "epochs: 0 cannot be used; write 1 or more"),
    ("lr: fast\n", "lr: 'fast' is a str; write a number"),
    ("lr: 0\n", "lr: 0.0 cannot be used; write a number above 0"),
    ("lr: .nan\n", "lr: nan is not finite"),
    ("lr: .inf\n", "lr: inf is not finite"),
    ("model: 7\n", "model: 7 is a int; write text"),
    ("model: ''\n", "model: '' cannot be used; write scratch"),
    ("backend: mpi\n", "backend: 'mpi' cannot be used; write one of auto, gloo, nccl"),
    ("precision: fp16\n", "precision: 'fp16' cannot be used; write one of fp32, bf16"),
    ("keep: 1\n", "keep: 1 cannot be used; write 2 or more"),
    ("beta2: 1\n", "beta2: 1.0 cannot be used"),
    ("dropout: 1.0\n", "dropout: 1.0 cannot be used"),
    ("min_lr_fraction: 2\n", "min_lr_fraction: 2.0 cannot be used"),
    (
        "global_batch: 30\n",
        "global_batch: 30 cannot be used; must be a multiple of micro_batch (4), such as 28",
    ),
    (
        "scratch_hidden: 100\n",
        "scratch_hidden: 100 cannot be used; must be a multiple of 2 x scratch_heads (8)",
    ),
    ("prompt_template: hello\n", "prompt_template: 'hello' cannot be used; must contain {instruction}"),
    ("data_heldout: b.txt\n", "data_heldout: 'b.txt' cannot be used; must be of the same kind"),
    ("data_heldout: b.csv\n", "data_heldout: 'b.csv' cannot be used; write a path that ends in .jsonl"),
    ("seq_len: 4\n", "seq_len: 4 cannot be used; write 8 or more"),
    ("data_train: b.jsonl\n", "data_train: is there twice (again in line 2); delete one"),
    ("steps: [1\n", "is not valid YAML in line 3"),
]


@pytest.mark.parametrize(("text", "expected"), BAD_FILES, ids=[text.strip() for text, _ in BAD_FILES])
def test_bad_file_gives_one_line_with_file_and_key(text, expected, tmp_path, capsys):
    file = tmp_path / "bad.yaml"
    file.write_text(GOOD + text)
    assert main([str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"{file}: ")
    assert expected in err


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


@pytest.mark.parametrize("file", sorted((ROOT / "training/configs").glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_configs_load(file):
    assert load(file).data_train


def test_every_field_has_a_docstring_of_its_own():
    body = ast.parse(inspect.getsource(config)).body
    fields = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == "Config").body
    for node, following in itertools.pairwise(fields):
        if isinstance(node, ast.AnnAssign):
            described = isinstance(following, ast.Expr) and isinstance(following.value.value, str)
            assert described, f"{node.target.id} has no docstring"


def test_settings_that_may_change_exist():
    assert {field.name for field in dataclasses.fields(Config)} > config.MAY_CHANGE


def test_needs_no_torch():
    code = "import sys, training.config, training.state, training.demo_data; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_python_callers_get_the_same_error():
    with pytest.raises(ConfigError, match="no such file"):
        load("/nowhere/x.yaml")
