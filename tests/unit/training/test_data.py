from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from training import data
from training.config import Config
from training.data import DataError, Row, collate, micro_batches_of, sample_indices
from training.model import load_tokenizer


def config_for(file, **settings):
    return Config(data_train=str(file), **settings)


def load(config):
    return data.load(config, load_tokenizer(config))


def test_every_epoch_has_every_row_once_in_another_order():
    epochs = [sample_indices(13, 1, 13 * epoch, 13 * (epoch + 1)) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(13))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_order_depends_on_seed_and_position_only():
    whole = sample_indices(50, 7, 0, 200)
    data._epoch_order.cache_clear()
    torch.manual_seed(99)
    assert [sample_indices(50, 7, at, at + 1)[0] for at in reversed(range(200))] == whole[::-1]
    assert sample_indices(50, 8, 0, 200) != whole


@pytest.mark.parametrize("world_size", range(1, 12))
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_micro_batches_are_shared_out_completely_and_evenly(world_size, count):
    shares = [micro_batches_of(rank, world_size, count) for rank in range(world_size)]
    assert [index for share in shares for index in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_eight_over_three():
    assert [len(micro_batches_of(rank, 3, 8)) for rank in range(3)] == [3, 3, 2]


def test_collate_counts_what_the_shifted_loss_counts():
    tokens, labels, valid = collate(
        [Row(tokens=[5, 6, 7, 8], answer_start=2), Row(tokens=[9, 4], answer_start=1)], pad=0
    )
    assert tokens.tolist() == [[5, 6, 7, 8], [9, 4, 0, 0]]
    assert labels.tolist() == [[-100, -100, 7, 8], [-100, 4, -100, -100]]
    assert valid == 3


def test_collate_of_nothing_counts_nothing():
    tokens, labels, valid = collate([], pad=3)
    assert tokens.shape == labels.shape == (1, 2)
    assert valid == 0
    assert (labels == -100).all()


def test_pairs_count_the_answer_and_the_end_mark_only(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"instruction": "ab", "response": "cd\u2028e"}, ensure_ascii=False) + "\n")
    config = config_for(file, data_heldout=str(file), prompt_template="{instruction}?")
    row = load(config).train[0]
    tokenizer = load_tokenizer(config)
    assert tokenizer.decode(row.tokens[: row.answer_start]) == "ab?"
    assert tokenizer.decode(row.tokens[row.answer_start : -1]) == "cd\u2028e"
    assert row.tokens[-1] == tokenizer.eos_token_id
    assert row.prompt() == row.tokens[:3]


def test_long_answers_are_cut_and_rows_without_room_are_counted(tmp_path, capsys):
    file = tmp_path / "a.jsonl"
    rows = [{"instruction": "i", "response": "x" * 100}, {"instruction": "y" * 100, "response": "z"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load(config_for(file, data_heldout=str(file), seq_len=20, prompt_template="{instruction}"))
    assert [len(row.tokens) for row in corpus.train] == [20]
    assert f"{file}: 1 rows left out" in capsys.readouterr().out


def test_text_is_cut_into_rows_and_its_end_is_held_out(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("".join(chr(97 + number % 26) for number in range(320)))
    config = config_for(file, seq_len=16)
    corpus = load(config)
    assert (len(corpus.train), len(corpus.heldout)) == (18, 2)
    decode = load_tokenizer(config).decode
    assert "".join(decode(row.tokens) for row in [*corpus.train, *corpus.heldout]) == file.read_text()
    assert {row.answer_start for row in corpus.train} == {1}


def test_pairs_kept_aside_share_no_content(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"instruction": f"i{number % 40}", "response": f"r{number % 40}"} for number in range(80)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load(config_for(file))
    sides = [Counter(tuple(row.tokens) for row in rows) for rows in (corpus.train, corpus.heldout)]
    assert sum(map(len, sides)) == 40
    assert not set(sides[0]) & set(sides[1])


BAD_ROWS = [
    ("{", "line 2 is not valid JSON"),
    ("[1]", "line 2 has no text in 'instruction'"),
    ('{"instruction": "a"}', "line 2 has no text in 'response'"),
    ('{"instruction": "a", "response": " "}', "line 2 has no text in 'response'"),
    ('{"instruction": 3, "response": "b"}', "line 2 has no text in 'instruction'"),
]


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS, ids=[row for row, _ in BAD_ROWS])
def test_bad_rows_name_file_and_line(row, expected, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"instruction": "a", "response": "b"}\n' + row + "\n")
    with pytest.raises(DataError) as error:
        load(config_for(file, data_heldout=str(file)))
    assert str(error.value).startswith(f"{file}: {expected}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", None, "no such file"),
        ("a.jsonl", b"", "no usable row"),
        ("a.txt", b"", "no usable row"),
        ("a.txt", b"ok\nok \xff\n", "line 2 is not UTF-8"),
    ],
)
def test_unusable_files(name, content, expected, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=expected):
        load(config_for(tmp_path / name))
