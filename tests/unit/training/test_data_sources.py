"""Files, directories and data sets of the hub, row by row; what is wrong in them is said with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tests.unit.training.tiny_tokenizer import tiny_tokenizer
from training import data
from training.config import Config
from training.data import DataError, sources
from training.data.readers import PIECE
from training.data.sources import find_sources
from training.models import load_tokenizer

PAIRS = [{"instruction": f"question {number}", "response": f"answer {number}"} for number in range(40)]


def lines(rows: list[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_as(file: Path, rows: list[dict]) -> Path:
    """The rows in the kind of file that the name asks for."""
    if file.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows, indent=1) if file.suffix == ".json" else lines(rows))
    return file


def obtained(tmp_path: Path, train: Path | str, *, tokenizer=None, **settings) -> data.Corpus:
    config = Config(data_train=str(train), **settings)
    return data.obtain(config, tokenizer or load_tokenizer(config), prepared=None, local_dir=tmp_path / "packed")


def texts_of(side: data.Packed) -> list[str]:
    """Every document's text."""
    decode = load_tokenizer(Config(data_train="a.txt")).decode
    batches = (side.batch([row]) for row in range(len(side)))
    return [
        decode(batch.tokens[0, first:last])
        for batch in batches
        for first, last in zip(batch.bounds, batch.bounds[1:], strict=False)
    ]


def test_the_same_rows_from_every_kind_of_file_are_the_same_tokens(tmp_path):
    expected = None
    for name in ("a.jsonl", "a.json", "a.parquet", "lines.json"):
        file = tmp_path / name
        if name == "lines.json":
            file.write_text("\ufeff" + lines(PAIRS).replace("\n", "\r\n"))
        else:
            write_as(file, PAIRS)
        corpus = obtained(tmp_path, file)
        texts = (texts_of(corpus.train), texts_of(corpus.heldout))
        assert len(texts[0]) + len(texts[1]) == 40
        expected = expected or texts
        assert texts == expected
    assert "### Instruction:\nquestion 0\n\n### Response:\nanswer 0</s>" in texts[0] + texts[1]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".txt"])
def test_a_directory_of_one_kind_is_read_in_the_order_of_names(kind, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "README.md").write_text("not data")
    (folder / f".hidden{kind}").write_text("not data either")
    for name, rows in (("b", PAIRS[20:]), ("a", PAIRS[:20])):
        file = folder / f"{name}{kind}"
        if kind == ".txt":
            file.write_text("".join(row["response"] + "\n" for row in rows))
        else:
            write_as(file, rows)
    corpus = obtained(tmp_path, folder, packing=False, seq_len=4096 if kind != ".txt" else 16)
    joined = "".join(texts_of(corpus.train) + texts_of(corpus.heldout))
    places = [joined.find(f"answer {number}") for number in (3, 23)]
    assert 0 <= places[0] < places[1]
    assert joined.count("answer ") == 40 and "not data" not in joined
    if kind == ".txt":  # each file is a text of its own
        assert next(text for text in texts_of(corpus.train) if "answer 19" in text).endswith("answer 19\n")


def test_running_text_comes_in_pieces_and_nothing_of_it_is_lost(tmp_path):
    file = tmp_path / "a.txt"
    text = "".join(f"line {number} é\r\n" for number in range(PIECE // 8)) + "the last one has no line end"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    (source, none) = find_sources(Config(data_train=str(file)))
    rows = list(source.rows(()))
    assert none is None
    assert len(rows) > 2
    assert "".join(row.content for row in rows) == text.replace("\r\n", "\n")
    assert [row.place for row in rows[:2]] == ["line 1", f"line {1 + rows[0].content.count(chr(10))}"]
    assert sum(row.lines for row in rows) == text.count("\n") + 1
    one_line = tmp_path / "one.txt"
    one_line.write_text("word " * (PIECE // 2))
    (source, _) = find_sources(Config(data_train=str(one_line)))
    pieces = [row.content for row in source.rows(())]
    assert len(pieces) > 2 and "".join(pieces) == one_line.read_text()
    assert all(piece.startswith(" word") for piece in pieces[1:-1])


def bad_text(tmp_path: Path) -> Path:
    file = tmp_path / "bad.txt"
    file.write_bytes("".join(f"line {number} ä\r\n" for number in range(300)).encode() + b"bad \xff\nend\n")
    return file


def test_a_line_of_text_that_is_not_utf8_is_left_out(tmp_path, capsys):
    corpus = obtained(tmp_path, bad_text(tmp_path), seq_len=64)
    joined = "".join(texts_of(corpus.train) + texts_of(corpus.heldout))
    assert "line 299 ä\nend\n" in joined and "bad" not in joined
    assert f"left out: {tmp_path}/bad.txt: line 301 is not UTF-8; convert the file" in capsys.readouterr().out


def test_bad_rows_are_named_counted_and_refused_above_the_stated_share(tmp_path, capsys):
    file = tmp_path / "a.jsonl"
    file.write_text(lines(PAIRS) + '{"instruction": "x"}\n' * 12 + "\n \n" + lines(PAIRS))
    corpus = obtained(tmp_path, file, bad_rows=12 / 92)
    assert len(texts_of(corpus.train)) + len(texts_of(corpus.heldout)) == 80
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert len(said) == 11
    assert said[0].startswith(f"left out: {file}: line 41 has no text in 'response'; write ")
    assert said[9].startswith(f"left out: {file}: line 50 ")
    assert said[10] == f"left out: {file}: 2 more rows"
    with pytest.raises(DataError) as error:  # although the packed data are there
        obtained(tmp_path, file, bad_rows=0.13)
    assert str(error.value).startswith(f"{file}: line 41 has no text in 'response'; write ")
    assert str(error.value).endswith("; 12 of 92 rows are bad: 0.1304, above bad_rows (0.13)")
    with pytest.raises(DataError, match=r"0\.1304, above bad_rows \(0\.0\)"):
        obtained(tmp_path / "other", file, bad_rows=0.0)


GOOD = '{"instruction": "a", "response": "b"}'
BAD_ROWS = {
    "{": "line 2 is not valid JSON (Expecting property name enclosed in double quotes); write one object per line",
    "[1]": "line 2 is not an object with fields; write",
    '{"instruction": "a"}': "line 2 has no text in 'response'; write",
    '{"instruction": "a", "response": " "}': "line 2 has no text in 'response'; write",
    '{"instruction": "", "output": "b"}': "line 2 has no text in 'instruction'; write",
    '{"instruction": 3, "response": "b"}': "line 2 has no text in 'instruction'; write",
    '{"instruction": "a", "input": 3, "response": "b"}': "line 2 has no text in 'input'; write",
    '{"instruction": "a", "response": "\\ud800"}': "line 2 has half a character (a lone surrogate) in 'response'; wr",
    "[" * 100_000: "line 2 cannot be read as JSON (maximum recursion depth exceeded",
    b'{"instruction": "\xff", "response": "b"}': "line 2 is not UTF-8; convert",
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.items(), ids=[str(row)[:40] for row in BAD_ROWS])
def test_a_bad_row_is_one_line_with_file_line_and_fix(row, expected, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_bytes(GOOD.encode() + b"\n" + (row if isinstance(row, bytes) else row.encode()) + b"\n")
    with pytest.raises(DataError) as error:
        obtained(tmp_path, file, data_heldout=str(file))
    assert str(error.value).startswith(f"{file}: {expected}")
    assert str(error.value).endswith("; 1 of 2 rows are bad: 0.5000, above bad_rows (0.01)")
    assert "\n" not in str(error.value)


UNUSABLE = {
    "a missing file": ("nowhere.jsonl", {}, "{}/nowhere.jsonl: no such file (from "),
    "an empty file": ("empty.jsonl", {"empty.jsonl": b""}, "{}/empty.jsonl: is empty; put data there"),
    "blank lines only": ("a.jsonl", {"a.jsonl": b"\n\n"}, "{}/a.jsonl: no usable row; "),
    "a text of one token": ("a.txt", {"a.txt": b"x"}, "{}/a.txt: no usable row; "),
    "a text of one row": ("a.txt", {"a.txt": b"xyz"}, "{}/a.txt: all 1 rows are held out; give more data or set "),
    "too few pairs": ("a.jsonl", {"a.jsonl": GOOD.encode()}, "{}/a.jsonl: no row to hold out among 1; give more data"),
    "text that is not UTF-8": ("a.txt", {"a.txt": b"ok\nok \xff\n"}, "{}/a.txt: line 2 is not UTF-8; convert"),
    "a broken list": ("a.json", {"a.json": b'[{"a":\n1},\n}]'}, "{}/a.json: line 3 is not valid JSON ("),
    "a list that is not UTF-8": ("a.json", {"a.json": b'[\n"\xff"]'}, "{}/a.json: line 2 is not UTF-8; convert"),
    "no Parquet": ("a.parquet", {"a.parquet": b"text"}, "{}/a.parquet: cannot be read as Parquet after row 0 ("),
    "an empty directory": (".", {}, "{}: holds no .jsonl, .json, .parquet, .txt file; put data there"),
    "mixed kinds": (".", {"a.jsonl": b"{}", "b.txt": b"x"}, "{}: holds .jsonl and .txt files; keep one kind there"),
    "one empty file of two": (".", {"a.txt": b"x", "b.txt": b""}, "{}/b.txt: is empty; put data there, delete it or "),
    "a directory named like a file": ("a.txt", {"a.txt/x": b""}, "{}/a.txt: holds no .jsonl, .json, .parquet, .txt "),
    "unknown fields": ("a.jsonl", {"a.jsonl": b'{"q": 1, "b": 2}'}, "{}/a.jsonl: line 1 has none of the fields mess"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_data_that_cannot_be_used_are_one_line_with_the_fix(case, tmp_path):
    name, files, expected = UNUSABLE[case]
    folder = tmp_path / "data"
    folder.mkdir()
    for file, content in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content)
    with pytest.raises(DataError) as error:
        obtained(tmp_path, folder / name)
    assert str(error.value).startswith(expected.format(folder))
    assert "\n" not in str(error.value)
    assert ";" in str(error.value)
    assert not list((tmp_path / "packed").glob("*packed-*")), "nothing half made is left"


def test_a_file_that_the_system_does_not_let_us_read(tmp_path):
    file = tmp_path / "a.jsonl"
    file.symlink_to("/proc/self/mem")  # its first bytes cannot be read by anybody
    with pytest.raises(
        DataError, match=rf"^{file}: cannot be read \(Input/output error\); correct its path or its rig"
    ):
        obtained(tmp_path, file)


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    """Through the real `datasets` library, as far as that goes without a network: a local directory as the name."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    for split, rows in (("train", PAIRS), ("validation", PAIRS[:3])):
        write_as(folder / f"{split}.jsonl", [row | {"other": 1} for row in rows])
    settings = {"data_split_heldout": "validation", "packing": False}
    corpus = obtained(tmp_path, f"hub:{folder}", **settings)
    assert texts_of(corpus.train) == texts_of(
        obtained(tmp_path, folder / "train.jsonl", data_heldout=str(folder / "validation.jsonl"), packing=False).train
    )
    assert len(corpus.heldout) == 3
    assert len(obtained(tmp_path, f"hub:{folder}").train) < 40, "a tenth is kept aside"
    assert obtained(tmp_path, f"hub:{folder}", **settings).fingerprint == corpus.fingerprint
    cases = (
        (f"hub:{folder}", {"data_split_train": "nosuch"}, "Unknown split", "data_split_train"),
        (f"hub:{folder}", {"data_hub_config": "nosuch"}, "BuilderConfig 'nosuch' not found", "data_split_train"),
        (f"hub:{tmp_path}/nowhere", {}, "Couldn't find any data file", "data_split_train"),
    )
    for name, more, problem, key in cases:
        with pytest.raises(DataError) as error:
            obtained(tmp_path, name, **more)
        assert str(error.value).startswith(f"{name}: cannot be loaded ({problem}")
        assert f"; correct data_train, data_hub_config or {key}, or look at the network" in str(error.value)
        assert "\n" not in str(error.value)


def test_what_the_hub_says_reaches_the_user_in_one_line(tmp_path, monkeypatch):
    asked = []

    def refuse(*arguments, **settings):
        asked.append((arguments, settings))
        raise ConnectionError("Couldn't reach 'some/set' on the Hub\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"^hub:some/set: cannot be loaded \(Couldn't reach 'some/set' on the Hub\); "):
        obtained(tmp_path, "hub:some/set", data_hub_config="part", data_split_train="train[:1%]")
    assert asked == [(("some/set",), {"name": "part", "split": "train[:1%]"})]


def test_rows_from_a_table_carry_only_the_fields_that_are_asked_for(tmp_path):
    file = write_as(tmp_path / "a.parquet", [row | {"big": "x" * 100} for row in PAIRS])
    (source, _) = find_sources(Config(data_train=str(file)))
    assert {tuple(sorted(row.content)) for row in source.rows({"instruction"})} == {("instruction",)}
    assert [row.place for row in source.rows({"instruction"})][-1] == "row 40"
    assert len(next(iter(source.rows({"nosuch"}))).content) == 3, "to say which fields there are"


def test_a_parquet_file_damaged_in_the_middle_says_how_far_it_was_read(tmp_path):
    file = write_as(
        tmp_path / "a.parquet", [{"text": f"{np.random.default_rng(n).bytes(50).hex()}"} for n in range(5000)]
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20_000] = b"\xff" * 20_000
    file.write_bytes(content)
    with pytest.raises(
        DataError, match=rf"^{file}: cannot be read as Parquet after row \d+ \(.*\); write the file again"
    ):
        obtained(tmp_path, file, tokenizer=tiny_tokenizer())


def test_kinds_named_in_the_settings_are_the_kinds_that_are_read():
    assert sources.DATA_FILES == (".jsonl", ".json", ".parquet", ".txt")
