"""`python -m training.prepare`: once before the job, the same again is quick and changes nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from tests.unit.training.tiny_tokenizer import tiny_tokenizer
from training import data, prepare
from training.config import Config
from training.errors import UserError
from training.folders import Folders
from training.models import ModelError, load_tokenizer

PAIRS = [{"instruction": f"i{number}", "response": "r" * (1 + number % 9)} for number in range(200)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = tmp_path / "a.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    config = tmp_path / "a.yaml"
    config.write_text(yaml.safe_dump({"data_train": str(rows), "seq_len": 64, "prompt_template": "{instruction}?"}))
    return config


def test_it_says_and_records_what_the_nodes_need(file, tmp_path, capsys):
    output = tmp_path / "job"
    assert prepare.main(["--config", str(file), "--output", str(output)]) == 0
    said = capsys.readouterr().out.splitlines()
    facts = json.loads((output / "prepared.json").read_text())
    packed = output / facts["packed"]
    assert said[-1] == f"prepared: {packed}"
    corpus = data.obtain(
        Config(**yaml.safe_load(file.read_text())),
        load_tokenizer(Config(data_train="a.txt")),
        prepared=Folders(job=output, prepared=output).packed(),
        local_dir=tmp_path / "local",
    )
    assert (facts["fingerprint"], facts["rows"]) == (corpus.fingerprint, len(corpus.train))
    assert facts["tokens"] == corpus.train.lengths.sum()
    assert facts["counted"] == corpus.train.counted(range(len(corpus.train)))
    assert facts["documents"] + facts["heldout_documents"] == 200
    assert facts["fill"] == pytest.approx(facts["tokens"] / (64 * facts["rows"]))
    assert facts["bad_rows"] == 0 and "model" not in facts and "tokenizer" not in facts
    assert f"training rows: {facts['rows']} of up to 64 tokens, {facts['fill']:.1%} full" in said
    assert "left out: 0 bad rows, 0 rows without room for an answer; cut: 0 rows" in said


def test_again_is_unchanged_until_something_is(file, tmp_path, capsys):
    output = tmp_path / "job"
    arguments = ["--config", str(file), "--output", str(output)]
    assert prepare.main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    capsys.readouterr()
    began = time.process_time()
    assert prepare.main(arguments) == 0
    assert time.process_time() - began < 2
    facts = json.loads((output / "prepared.json").read_text())
    assert capsys.readouterr().out.splitlines()[-1] == f"unchanged: {output / facts['packed']}"
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before
    assert prepare.main([*arguments, "packing=false"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("prepared: ")
    assert json.loads((output / "prepared.json").read_text())["packed"] != facts["packed"]
    (output / "prepared.json").write_bytes(b"\xff")
    assert prepare.main([*arguments, "packing=false"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("prepared: ")


def test_what_is_fetched_is_recorded_for_the_nodes(file, tmp_path, monkeypatch):
    """The download itself is tested in test_fetch.py."""
    fetched = tmp_path / "models" / "some--model"
    tiny_tokenizer().save_pretrained(fetched)
    seen = []

    def fetch(config: Config, directory: Path) -> Config:
        seen.append((config.model, directory))
        return Config(**(vars(config) | {"model": str(fetched)}))

    monkeypatch.setattr(prepare, "fetch", fetch)
    output = tmp_path / "job"
    arguments = ["--config", str(file), "--output", str(output), "model=some/model"]
    assert prepare.main([*arguments, "--models", str(tmp_path / "models")]) == 0
    assert prepare.main(arguments) == 0
    assert seen == [("some/model", tmp_path / "models"), ("some/model", output / "models")]
    facts = json.loads((output / "prepared.json").read_text())
    assert facts["model"] == str(fetched) and "tokenizer" not in facts
    config = Config(**(yaml.safe_load(file.read_text()) | {"model": "some/model"}))
    assert Folders(job=output, prepared=output).as_fetched(config).model == str(fetched)


def test_what_a_run_takes_is_all_of_one_preparation(file, tmp_path):
    """Two train.yml at once: the second prepares while the first one's workers come."""
    output = tmp_path / "job"
    assert prepare.main(["--config", str(file), "--output", str(output)]) == 0
    ours, config = Folders(job=output, prepared=output), Config(**yaml.safe_load(file.read_text()))
    packed = ours.packed()
    assert ours.prepared_for() == config.sha256()
    assert prepare.main(["--config", str(file), "--output", str(output), "packing=false", "lr=0.5"]) == 0
    assert (ours.packed(), ours.prepared_for()) == (packed, config.sha256())
    theirs = Folders(job=output, prepared=output)
    assert theirs.packed() != packed and theirs.prepared_for() != config.sha256()
    assert Folders(job=output).prepared_for() == ""


@pytest.mark.parametrize("content", ["{", "[]", "{}", None])
def test_a_preparation_that_cannot_be_read_is_one_line(content, tmp_path):
    if content is not None:
        (tmp_path / "prepared.json").write_text(content)
    with pytest.raises(UserError, match=r"prepared\.json: cannot be read .* run `python -m training\.prepare` again"):
        Folders(job=tmp_path, prepared=tmp_path).packed()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seq_lem=3", "command line: seq_lem: unknown key; did you mean seq_len?"),
        ("data_train=/nowhere/a.jsonl", "/nowhere/a.jsonl: no such file (from "),
        ("model=/nowhere/model", "tokenizer: /nowhere/model cannot be loaded ("),
    ],
)
def test_mistakes_are_one_line_and_status_2(override, expected, file, tmp_path, capsys):
    assert prepare.main(["--config", str(file), "--output", str(tmp_path / "job"), override]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(expected) and errors.count("\n") == 1
    assert not (tmp_path / "job/prepared.json").exists()


def test_a_failed_download_is_one_line_and_status_2(file, tmp_path, capsys, monkeypatch):
    def fetch(config: Config, directory: Path) -> Config:
        raise ModelError("model: some/model is gated;\n set HF_TOKEN")

    monkeypatch.setattr(prepare, "fetch", fetch)
    assert prepare.main(["--config", str(file), "--output", str(tmp_path / "job")]) == 2
    assert capsys.readouterr().err == "model: some/model is gated; set HF_TOKEN\n"


def test_hello_needs_nothing(file, tmp_path, capsys):
    file.write_text("recipe: hello\nsteps: 5\n")
    assert prepare.main(["--config", str(file), "--output", str(tmp_path / "job")]) == 0
    assert capsys.readouterr().out == "unchanged: recipe hello needs no data\n"
    assert not (tmp_path / "job").exists()
