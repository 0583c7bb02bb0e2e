"""Packed rows: micro-batches, the files they come from, and one maker or copier per node."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.unit.training.tiny_tokenizer import CHATML, tiny_tokenizer
from training import data
from training.config import Config
from training.data import IGNORED, DataError
from training.data.copies import LOCK, alone
from training.data.corpus import tokenizer_sha256
from training.data.write import write
from training.models import load_tokenizer

BYTES = load_tokenizer(Config(data_train="a.txt"))
PAIRS = [{"instruction": f"i{number}", "response": "r" * (1 + number * number % 37)} for number in range(60)]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return Config(data_train=str(file), prompt_template="{instruction}?", seq_len=64)


@pytest.fixture
def packed(config: Config, tmp_path: Path) -> Path:
    return data.prepare(config, BYTES, tmp_path / "shared")


def with_settings(config: Config, **settings: object) -> Config:
    return Config(**(vars(config) | settings))


def obtain(config: Config, prepared: Path | None, local: Path, tokenizer=BYTES) -> data.Corpus:
    return data.obtain(config, tokenizer, prepared=prepared, local_dir=local)


def documents_of(batch: data.Batch) -> list[tuple[list[int], list[int]]]:
    """(tokens, labels) of each document."""
    return [
        (batch.tokens[0, first:last].tolist(), batch.labels[0, first:last].tolist())
        for first, last in itertools.pairwise(batch.bounds.tolist())
    ]


def test_packing_neither_loses_nor_divides_nor_mixes_documents(config, tmp_path):
    corpora = {pack: obtain(with_settings(config, packing=pack), None, tmp_path / "local") for pack in (True, False)}
    alone, together = ([corpora[pack].train.batch([row]) for row in range(len(corpora[pack].train))] for pack in (0, 1))
    assert all(len(batch.bounds) == 2 for batch in alone)
    assert len(together) < len(alone) / 1.5
    assert max(batch.seen for batch in together) <= 64
    assert sorted(document for batch in together for document in documents_of(batch)) == sorted(
        document for batch in alone for document in documents_of(batch)
    )
    for pack in (True, False):  # what is held out is never packed
        assert all(len(corpora[pack].heldout.batch([row]).bounds) == 2 for row in range(len(corpora[pack].heldout)))


def test_a_batch_is_what_its_documents_say(packed, config):
    corpus = obtain(config, packed, packed.parent)
    chosen = [3, 0, 3]
    batch = corpus.train.batch(chosen)
    assert (batch.tokens.dtype, batch.labels.dtype, batch.positions.dtype) == (torch.int64,) * 3
    assert (batch.bounds.dtype, batch.tokens.shape) == (torch.int32, (1, batch.seen))
    assert batch.tokens.shape == batch.labels.shape == batch.positions.shape
    tokens, labels, positions, longest = [], [], [], 0
    for row in chosen:
        for text, _ in documents_of(corpus.train.batch([row])):
            answer = text.index(BYTES("?", add_special_tokens=False).input_ids[0]) + 1
            tokens += text
            labels += [IGNORED] * (answer - 1) + text[answer:] + [IGNORED]
            positions += range(len(text))
            longest = max(longest, len(text))
    assert batch.tokens[0].tolist() == tokens
    assert batch.labels[0].tolist() == labels
    assert batch.positions[0].tolist() == positions
    assert batch.longest == longest
    assert batch.counted == sum(label != IGNORED for label in labels) == corpus.train.counted(chosen)
    assert corpus.train.lengths.tolist() == [corpus.train.batch([row]).seen for row in range(len(corpus.train))]
    batch.tokens[0, 0] = 0  # a copy: neither the file nor the next batch changes
    assert corpus.train.batch(chosen).tokens[0].tolist() == tokens


def test_a_batch_of_nothing_counts_nothing(packed, config):
    train = obtain(config, packed, packed.parent).train
    batch = train.batch([])
    assert (batch.tokens.tolist(), batch.labels.tolist(), batch.positions.tolist()) == ([[0]], [[IGNORED]], [[0]])
    assert (batch.bounds.tolist(), batch.longest, batch.counted, batch.seen) == ([0, 1], 1, 0, 1)
    assert train.counted([]) == 0


def test_rows_that_are_not_there_are_refused(packed, config):
    corpus = obtain(with_settings(config, heldout_rows=2), packed, packed.parent)
    assert len(corpus.heldout) == len(corpus.heldout.lengths) == 2
    whole = obtain(config, packed, packed.parent).heldout
    assert len(whole) > 2
    assert torch.equal(corpus.heldout.batch([1]).tokens, whole.batch([1]).tokens)
    for row in (-1, 2):
        with pytest.raises(IndexError):
            corpus.heldout.batch([0, row])
        with pytest.raises(IndexError):
            corpus.heldout.counted([row])


def test_assembling_a_batch_takes_microseconds(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("some words of text\n" * 20_000)
    config = Config(data_train=str(file))
    train = obtain(config, None, tmp_path).train
    orders = [data.sample_indices(len(train), 1, at, at + 8) for at in range(0, 2400, 8)]
    shares = []
    for _ in range(5):
        began = time.process_time()
        for order in orders:
            train.batch(order)
        shares.append((time.process_time() - began) / len(orders))
    assert min(shares) < 1e-3  # 0.09 ms where it was measured; a loop over tokens takes 10 ms


def test_tokens_of_a_large_vocabulary_are_wide(tmp_path, config):
    tokenizer = tiny_tokenizer(start=True)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(70_000)])
    file = tmp_path / "b.jsonl"
    file.write_text(json.dumps({"instruction": "x", "response": "<extra69999>"}) + "\n")
    both = with_settings(config, data_train=str(file), data_heldout=str(file))
    tokens = obtain(both, None, tmp_path, tokenizer).train.batch([0]).tokens[0].tolist()
    assert tokenizer.convert_tokens_to_ids("<extra69999>") in tokens
    assert max(tokens) > 1 << 16


def test_the_fingerprint_follows_from_contents_tokenizer_and_settings_that_matter(config, tmp_path):
    def name(tokenizer=BYTES, **settings) -> str:
        return data.prepare(with_settings(config, **settings), tokenizer, tmp_path / "out").name

    first = name()
    assert first == name(bad_rows=0.5, heldout_rows=3, steps=7, lr=0.1, data_from_share=True)
    moved = shutil.copy(config.data_train, tmp_path / "moved.jsonl")
    assert name(data_train=str(moved)) == first
    others = [
        name(seq_len=32),
        name(packing=False),
        name(prompt_template="{instruction}:"),
        name(data_heldout=str(moved)),
        name(tokenizer=tiny_tokenizer()),
        name(tokenizer=tiny_tokenizer(CHATML)),
        name(tokenizer=tiny_tokenizer(start=True)),
    ]
    with moved.open("a") as stream:
        stream.write(json.dumps(PAIRS[0]) + "\n")
    others.append(name(data_train=str(moved)))
    assert len({first, *others}) == 1 + len(others)


def test_a_tokenizer_is_known_wherever_it_was_loaded_from_and_whatever_it_did(tmp_path):
    tokenizer = tiny_tokenizer(CHATML)
    before = tokenizer_sha256(tokenizer)
    tokenizer(["a", "longer"], padding=True, truncation=True, max_length=3)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert tokenizer_sha256(tokenizer) == before
    assert tokenizer_sha256(load_tokenizer(Config(data_train="a.txt", tokenizer=str(tmp_path / "saved")))) == before
    assert tokenizer_sha256(load_tokenizer(Config(data_train="a.txt"))) == tokenizer_sha256(BYTES) != before


def test_a_node_copies_once_and_reads_its_copy(packed, config, tmp_path, capsys):
    local = tmp_path / "local"
    corpus = obtain(config, packed, local)
    assert corpus.fingerprint == obtain(config, None, packed.parent).fingerprint
    assert packed.name == f"packed-{corpus.fingerprint[:12]}"
    copied = {file.name: file.stat().st_mtime_ns for file in (local / packed.name).iterdir()}
    capsys.readouterr()
    obtain(config, packed, local, tokenizer=None)
    assert {file.name: file.stat().st_mtime_ns for file in (local / packed.name).iterdir()} == copied
    assert capsys.readouterr().out == ""
    shutil.rmtree(packed)
    assert corpus.train.batch([0]).seen > 1


def test_data_on_the_share_are_read_in_place_on_request(packed, config, tmp_path):
    local = tmp_path / "local"
    shared = with_settings(config, data_from_share=True)
    corpus = obtain(shared, packed, local)
    assert not list(local.glob("packed-*"))
    assert torch.equal(corpus.train.batch([1]).tokens, obtain(config, packed, local).train.batch([1]).tokens)
    damage(packed / "train.tokens")
    with pytest.raises(DataError, match=rf"^{packed}: train.tokens does not match the manifest; run `python -m train"):
        obtain(shared, packed, local)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_copy_is_found_said_and_made_again(packed, config, tmp_path, capsys):
    local = tmp_path / "local"
    expected = obtain(config, packed, local).train.batch([0, 1]).tokens
    copy = local / packed.name
    cases = {
        "train.tokens does not match the manifest": lambda: damage(copy / "train.tokens"),
        "train.rows does not match the manifest": lambda: os.truncate(copy / "train.rows", 8),
        "heldout.counts is missing": lambda: (copy / "heldout.counts").unlink(),
        "has no manifest that can be read": lambda: os.truncate(copy / "manifest.json", 100),
        "is not the newest": lambda: (copy / "manifest.json").write_text(
            (copy / "manifest.json").read_text().replace('"format"', ' "format"')
        ),
    }
    for said, spoil in cases.items():
        spoil()
        capsys.readouterr()
        assert torch.equal(obtain(config, packed, local).train.batch([0, 1]).tokens, expected)
        assert f"{copy}: {said}; it is copied again" in capsys.readouterr().out
    damage(packed / "train.counts")
    shutil.rmtree(copy)
    with pytest.raises(
        DataError, match=rf"^{packed}/train.counts: does not match the manifest beside it; run `python "
    ):
        obtain(config, packed, local)
    assert sorted(path.name for path in local.iterdir()) == [f".checked-{packed.name}.json", LOCK]


def test_damaged_packed_data_are_made_again(packed, config, capsys):
    before = (packed / "train.tokens").read_bytes()
    damage(packed / "train.tokens")
    assert data.prepare(config, BYTES, packed.parent) == packed
    assert (packed / "train.tokens").read_bytes() == before
    assert f"{packed}: train.tokens does not match the manifest; it is made again" in capsys.readouterr().out


def test_a_check_is_remembered_for_this_place_and_these_files_only(packed, config, tmp_path, monkeypatch):
    local = tmp_path / "local"
    obtain(config, packed, local)
    hashed = []
    monkeypatch.setattr("training.data.copies.sha256_of", lambda path: hashed.append(path) or "0")
    obtain(config, packed, local)
    assert hashed == []
    obtain(config, None, packed.parent)
    assert hashed == []
    for file in (local / packed.name).iterdir():  # the same sizes and times at another place
        os.utime(packed / file.name, ns=(file.stat().st_mtime_ns,) * 2)
    with pytest.raises(DataError):
        obtain(with_settings(config, data_from_share=True), packed, local)
    assert hashed
    hashed.clear()
    os.utime(local / packed.name / "train.rows", ns=(1, 1))
    obtain(config, packed, local)
    assert hashed, "changed since"


OTHER = {
    "seq_len": (32, "was packed with seq_len 64, now it is 32"),
    "packing": (False, "was packed with packing True, now it is False"),
    "prompt_template": ("{instruction}:", "was packed with prompt_template '{instruction}?', now it is"),
}


@pytest.mark.parametrize("key", OTHER)
def test_packed_data_of_other_settings_are_refused(key, packed, config, tmp_path):
    value, expected = OTHER[key]
    with pytest.raises(DataError) as error:
        obtain(with_settings(config, **{key: value}), packed, tmp_path / "local")
    assert str(error.value).startswith(f"{packed}: {expected}")
    assert str(error.value).endswith("; run `python -m training.prepare` with this config")


def test_packed_data_of_another_tokenizer_or_format_or_none_at_all_are_refused(packed, config, tmp_path):
    with pytest.raises(DataError, match=r"was packed with another tokenizer than that of scratch; run `python -m trai"):
        obtain(config, packed, tmp_path / "local", tiny_tokenizer())
    manifest = json.loads((packed / "manifest.json").read_text())
    (packed / "manifest.json").write_text(json.dumps(manifest | {"format": 0}))
    with pytest.raises(DataError, match=r"has format 0, this version reads 1; run `python -m training.prepare` with"):
        obtain(config, packed, tmp_path / "local")
    (packed / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest.json: does not name fingerprint, format, heldout, .*; run `python"):
        obtain(config, packed, tmp_path / "local")
    (packed / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json: cannot be read \(JSONDecodeError\); run `python -m training"):
        obtain(config, packed, tmp_path / "local")
    with pytest.raises(DataError, match=r"nowhere/manifest.json: is missing; run `python -m training.prepare` again"):
        obtain(config, tmp_path / "nowhere", tmp_path / "local")


def test_a_disk_without_room_is_said_before_anything_is_copied(packed, config, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10, 9, 1)
    monkeypatch.setattr("training.data.copies.shutil.disk_usage", lambda path: usage)
    with pytest.raises(
        DataError, match=r"needs 0\.00 GB for packed data, 0\.00 GB are free; free space there or write"
    ):
        obtain(config, packed, tmp_path / "local")


def test_a_disk_that_cannot_be_written_is_one_line(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as error:
        obtain(config, None, tmp_path / "file" / "local")
    assert str(error.value).startswith(
        f"{tmp_path}/file/local: Not a directory (packed data in {tmp_path}/file/local);"
    )


def test_a_disk_that_is_full_while_packing_is_one_line_and_leaves_no_half(config, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))  # bytes of a file; the tokens need more
    try:
        with pytest.raises(DataError) as error:
            obtain(config, None, tmp_path / "local")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value).startswith(
        f"{tmp_path}/local: File too large (packed data in {tmp_path}/local); free space"
    )
    assert [path.name for path in (tmp_path / "local").iterdir()] == [LOCK]


def in_children(count: int, work: Callable[[int], None]) -> list[multiprocessing.Process]:
    """`work(number)` in forked processes: they need not import anything again."""
    children = [multiprocessing.get_context("fork").Process(target=work, args=(number,)) for number in range(count)]
    for child in children:
        child.start()
    return children


@pytest.mark.timeout(120)
def test_processes_of_a_node_do_it_once(config, tmp_path, monkeypatch):
    local = tmp_path / "local"
    local.mkdir()
    (local / ".packing-packed-0-1").mkdir()  # of a process that was killed

    def slowly(*arguments):
        time.sleep(1.5)
        write(*arguments)

    monkeypatch.setattr("training.data.corpus.write", slowly)

    def work(number: int) -> None:
        with (tmp_path / f"said-{number}").open("w") as stream, contextlib.redirect_stdout(stream):
            print(len(obtain(config, None, local).train))

    children = in_children(3, work)
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    said = [(tmp_path / f"said-{number}").read_text() for number in range(3)]
    assert sum("packed: " in text for text in said) == 1
    assert sum(f"waiting for another process that prepares data in {local}" in text for text in said) == 2
    assert len({text.splitlines()[-1] for text in said}) == 1
    assert not list(local.glob(".packing-*"))


@pytest.mark.timeout(60)
def test_a_dead_holder_of_the_lock_frees_it(config, tmp_path):
    held = tmp_path / "held"

    def hold(number: int) -> None:
        with alone(tmp_path / "local"):
            held.touch()
            time.sleep(60)

    (child,) = in_children(1, hold)
    while not held.exists():
        assert child.is_alive()
        time.sleep(0.01)
    child.kill()
    child.join()
    assert len(obtain(config, None, tmp_path / "local").train) > 0
