"""Pairs, chats and texts as tokens, and which of them count in the loss."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from tests.unit.training.tiny_tokenizer import CHATML, tiny_tokenizer
from training import data
from training.config import Config
from training.data import IGNORED, DataError
from training.models import load_tokenizer

BYTES = load_tokenizer(Config(data_train="a.txt"))


def obtained(tmp_path: Path, rows: list[dict] | str, tokenizer=BYTES, **settings) -> data.Corpus:
    """The corpus of the rows (or of a text), all of them on both sides."""
    file = tmp_path / ("a.txt" if isinstance(rows, str) else "a.jsonl")
    file.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "data_train": str(file),
        "data_heldout": str(file),
        "packing": False,
        "prompt_template": "{instruction}?",
    } | settings
    config = Config(**settings)
    return data.obtain(config, tokenizer, prepared=None, local_dir=tmp_path)


def shown(side: data.Packed, tokenizer=BYTES) -> list[tuple[str, str]]:
    """Per row: its text, and the tokens that count, each stretch of them as text, joined by |."""
    rows = []
    for row in range(len(side)):
        batch = side.batch([row])
        labels = batch.labels[0].tolist()
        stretches = [
            list(group) for counts, group in itertools.groupby(labels, lambda label: label != IGNORED) if counts
        ]
        rows.append((tokenizer.decode(batch.tokens[0]), "|".join(tokenizer.decode(stretch) for stretch in stretches)))
    return rows


def test_of_a_pair_the_answer_and_the_end_mark_count(tmp_path):
    corpus = obtained(tmp_path, [{"instruction": "ab", "response": "cd\u2028e"}])
    assert shown(corpus.train) == [("ab?cd\u2028e</s>", "cd\u2028e</s>")]
    assert BYTES.decode(corpus.train.prompt(0)) == "ab?"


def test_alpaca_fields(tmp_path):
    rows = [
        {"instruction": "i {input}", "input": "", "output": "o"},
        {"instruction": "i", "input": "x", "output": "o"},
        {"instruction": "i", "input": None, "output": "o", "response": "r"},
    ]
    assert [text for text, _ in shown(obtained(tmp_path, rows).train)] == ["i {input}?o</s>", "i\n\nx?o</s>", "i?r</s>"]
    template = "<{instruction}|{input}>{instruction}"
    corpus = obtained(tmp_path, rows, prompt_template=template)
    assert [text for text, _ in shown(corpus.train)] == ["<i {input}|>i {input}o</s>", "<i|x>io</s>", "<i|>ir</s>"]


def test_other_names_of_fields(tmp_path):
    rows = [{"q": "i", "with": "x", "a": "o", "instruction": "no"}]
    corpus = obtained(tmp_path, rows, instruction_field="q", input_field="with", response_field="a")
    assert shown(corpus.train) == [("i\n\nx?o</s>", "o</s>")]


def test_alpaca_with_a_preset_for_other_names(tmp_path):
    """Its `input` is no less material for being called otherwise than in the preset's own data."""
    rows = [
        {"instruction": "i", "input": "x", "output": "o"},
        {"instruction": "i", "context": "c", "input": "x", "output": "o"},
    ]
    corpus = obtained(tmp_path, rows, input_field="context")
    assert [text for text, _ in shown(corpus.train)] == ["i\n\nx?o</s>", "i\n\nc?o</s>"]


@pytest.mark.parametrize("blank", ["", " ", "\n\t", None])
def test_material_that_is_blank_is_none(blank, tmp_path):
    corpus = obtained(tmp_path, [{"instruction": "i", "input": blank, "output": "o"}])
    assert [text for text, _ in shown(corpus.train)] == ["i?o</s>"]


def test_a_start_mark_stands_in_front_and_does_not_count(tmp_path):
    tokenizer = tiny_tokenizer(start=True)
    corpus = obtained(tmp_path, [{"instruction": "the question", "response": "the answer"}], tokenizer)
    assert shown(corpus.train, tokenizer) == [("<|start|>the question?the answer<|im_end|>", "the answer<|im_end|>")]
    corpus = obtained(tmp_path, [{"text": "the text"}], tokenizer)
    assert shown(corpus.train, tokenizer) == [("<|start|>the text<|im_end|>", "the text<|im_end|>")]


def test_long_answers_are_cut_and_rows_without_room_are_counted(tmp_path, capsys):
    rows = [{"instruction": "i", "response": "x" * 100}, {"instruction": "y" * 18, "response": "z"}]
    rows.append({"instruction": "y" * 19, "response": "z"})
    corpus = obtained(tmp_path, rows, seq_len=20)
    assert shown(corpus.train) == [("i?" + "x" * 18, "x" * 18), ("y" * 18 + "?z", "z")]
    said = f"left out: {tmp_path}/a.jsonl: 1 rows: their prompt alone fills seq_len (20)"
    out = capsys.readouterr().out
    assert out.count(said) == 2, "on both sides"
    lost = f"cut: {tmp_path}/a.jsonl: 2 rows: their end, with its end mark, is lost beyond seq_len (20)"
    assert out.count(lost) == 2, "not the one without room"


def test_running_text_is_divided_without_marks_and_its_end_is_held_out(tmp_path):
    text = "".join(chr(97 + number % 26) for number in range(321))
    corpus = obtained(tmp_path, text, seq_len=16, data_heldout="")
    assert (len(corpus.train), len(corpus.heldout)) == (18, 2)
    rows = shown(corpus.train) + shown(corpus.heldout)
    assert "".join(whole for whole, _ in rows) == text[:320]  # the last piece of one token predicts nothing
    assert all(counted == whole[1:] for whole, counted in rows)
    assert corpus.train.prompt(0) == BYTES(text[:4], add_special_tokens=False).input_ids


def test_real_text_comes_back_whole(tmp_path):
    given = Path(os.environ.get("MINOS_TEST_DATA", Path(__file__).parents[4] / "shared/data")) / "wikitext-2/valid.txt"
    if not given.exists():
        pytest.skip(f"no {given}; set MINOS_TEST_DATA to a directory with wikitext-2/valid.txt")
    tokenizer = tiny_tokenizer()
    corpus = obtained(tmp_path, given.read_text(), tokenizer, data_heldout="", packing=True, seq_len=256)
    batches = (side.batch(range(len(side))) for side in (corpus.train, corpus.heldout))
    assert "".join(tokenizer.decode(batch.tokens[0]) for batch in batches) == given.read_text()
    assert corpus.train.lengths.tolist() == [256] * len(corpus.train)


def test_texts_in_rows_end_with_the_mark_are_divided_and_may_be_empty(tmp_path):
    corpus = obtained(
        tmp_path, [{"text": "abc"}, {"text": " \n"}, {"text": "0123456789"}, {"text": "a" * 7}], seq_len=8
    )
    assert [text for text, _ in shown(corpus.train)] == ["abc</s>", "01234567", "89</s>", "a" * 7 + "</s>"]
    assert [counted for _, counted in shown(corpus.train)] == ["bc</s>", "1234567", "9</s>", "a" * 6 + "</s>"]


def test_blank_texts_behind_a_long_one_are_no_documents(tmp_path, monkeypatch):
    """They are tokenised in a group of their own, of nothing."""
    monkeypatch.setattr("training.data.formats.TOGETHER", 5)
    corpus = obtained(tmp_path, [{"text": "abcdefgh"}, {"text": "  "}, {"text": ""}])
    assert [text for text, _ in shown(corpus.train)] == ["abcdefgh</s>"]


def test_what_is_kept_aside_shares_no_content_with_what_is_trained_on(tmp_path):
    rows = [{"instruction": f"i{number % 37}", "response": f"r{number % 37}"} for number in range(80)]
    corpus = obtained(tmp_path, rows, data_heldout="")
    sides = [[text for text, _ in shown(side)] for side in (corpus.train, corpus.heldout)]
    assert len(sides[0]) + len(sides[1]) == 80 and len(sides[1]) in range(2, 20)
    assert not set(sides[0]) & set(sides[1])
    texts = [{"text": f"{number} " * 40} for number in range(40)]
    corpus = obtained(tmp_path, texts, data_heldout="", seq_len=16)
    words = [
        {whole.split()[1] for whole, _ in shown(side) if len(whole.split()) > 3}
        for side in (corpus.train, corpus.heldout)
    ]
    assert len(words[0] | words[1]) == 40 and not words[0] & words[1]


def chat(*turns: str) -> dict[str, list[dict[str, str]]]:
    """`chat("u:hello", "a:hi")`."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return {"messages": [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]}


TALK = chat("s:short", "u:the question", "a:the answer", "u:and?", "a: again\n")
TALK_TEXT = (
    "<|im_start|>system\nshort<|im_end|>\n<|im_start|>user\nthe question<|im_end|>\n"
    "<|im_start|>assistant\nthe answer<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n"
    "<|im_start|>assistant\n again\n<|im_end|>\n"
)
WITH_MARKS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [CHATML, WITH_MARKS], ids=["found", "marked"])
def test_of_a_chat_every_answer_with_its_end_mark_counts(template, tmp_path):
    tokenizer = tiny_tokenizer(template)
    left_open = {"role": "user", "content": "what follows the last answer is not needed"}
    corpus = obtained(tmp_path, [{"messages": [*TALK["messages"], left_open]}], tokenizer)
    assert shown(corpus.train, tokenizer) == [(TALK_TEXT, "the answer<|im_end|>| again\n<|im_end|>")]
    whole = tokenizer.apply_chat_template(TALK["messages"], return_dict=True)["input_ids"]
    assert corpus.train.batch([0]).tokens[0].tolist() == whole
    assert tokenizer.decode(corpus.train.prompt(0)) == TALK_TEXT[: TALK_TEXT.index("the answer")]


def test_the_marks_of_a_template_are_what_transformers_says_they_are(tmp_path):
    tokenizer = tiny_tokenizer(WITH_MARKS)
    labels = obtained(tmp_path, [TALK], tokenizer).train.batch([0]).labels[0]
    theirs = tokenizer.apply_chat_template(TALK["messages"], return_dict=True, return_assistant_tokens_mask=True)
    assert [0, *(labels != IGNORED).int().tolist()][: len(labels)] == theirs["assistant_masks"]


def test_a_chat_for_a_tokenizer_without_offsets(tmp_path):
    slow = load_tokenizer(Config(data_train="a.txt"))
    slow.chat_template = "{% for m in messages %}{{ m.role[0] + ':' + m.content + '</s>' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
    )
    corpus = obtained(tmp_path, [chat("u:abc", "a:de", "u:f", "a:g")], slow)
    assert shown(corpus.train, slow) == [("u:abc</s>a:de</s>u:f</s>a:g</s>", "de</s>|g</s>")]


FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ 'thought ' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_where_later_turns_change_earlier_ones_each_answer_is_a_document(tmp_path):
    tokenizer = tiny_tokenizer(FORGETFUL)
    corpus = obtained(tmp_path, [chat("u:one", "a:1", "u:two", "a:2", "u:no answer")], tokenizer)
    assert shown(corpus.train, tokenizer) == [
        ("<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\nthought 1<|im_end|>\n", "thought 1<|im_end|>"),
        (
            "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
            "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\nthought 2<|im_end|>\n",
            "thought 2<|im_end|>",
        ),
    ]
    many = [chat(f"u:question {n}", "a:1", "u:two", "a:2") for n in range(60)]
    corpus = obtained(tmp_path, many, tokenizer, data_heldout="")
    asked = [{whole.split("\n")[1] for whole, _ in shown(side, tokenizer)} for side in (corpus.train, corpus.heldout)]
    assert not asked[0] & asked[1], "both answers of a chat are on the same side"


def test_the_first_token_never_counts_although_it_is_an_answer(tmp_path):
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}")
    corpus = obtained(tmp_path, [chat("a:the answer", "u:q", "a:x")] * 2, tokenizer, packing=True)
    text = "the answer<|im_end|>q<|im_end|>x<|im_end|>"
    assert shown(corpus.train, tokenizer) == [(text * 2, " answer<|im_end|>|x<|im_end|>| answer<|im_end|>|x<|im_end|>")]


def test_a_long_chat_is_cut_and_left_out_when_no_answer_remains(tmp_path, capsys):
    tokenizer = tiny_tokenizer(CHATML)
    rows = [chat("u:q", "a:x" + "0" * 80, "u:q", "a:y"), chat("u:q" + "0" * 80, "a:y")]
    corpus = obtained(tmp_path, rows, tokenizer, seq_len=32)
    assert shown(corpus.train, tokenizer)[0][1].startswith("x000")
    assert (len(corpus.train), corpus.train.lengths.tolist()) == (1, [32])
    assert "1 rows: their prompt alone fills seq_len (32)" in capsys.readouterr().out


def test_the_date_of_tokenising_does_not_get_into_the_data(tmp_path):
    dated = "{{ (date_string if date_string is defined else strftime_now('%d %b %Y')) + '\n' }}" + CHATML
    tokenizer = tiny_tokenizer(dated)
    assert shown(obtained(tmp_path, [chat("u:q", "a:y")], tokenizer).train, tokenizer)[0][0].startswith("26 Jul 2024\n")


BAD_CHATS = {
    "unknown role": (
        chat("u:q", "a:y")["messages"] + [{"role": "bot", "content": "x"}],
        "has the unknown role 'bot' (m",
    ),
    "no answer": (chat("s:x", "u:q")["messages"], "has no answer (no message with the role assistant); write one"),
    "empty answer": (chat("u:q", "a: ")["messages"], "has no text in 'content' of message 2; write {"),
    "no content": ([{"role": "user"}], "has no text in 'content' of message 1; write {"),
    "no message": ([], "has no list of messages in 'messages'; write [{"),
    "a text": ("hello", "has no list of messages in 'messages'; write [{"),
    "a message that is a text": (["hello"], "has a message (1) that is not an object; write {"),
    "refused by the template": (
        chat("u:q", "u:q", "a:y")["messages"],
        "is refused by the tokenizer's chat template (tu",
    ),
}
STRICT = (
    "{% if messages|length > 1 and messages[0].role == messages[1].role %}{{ raise_exception('turns') }}{% endif %}"
)


@pytest.mark.parametrize("case", BAD_CHATS)
def test_a_bad_chat_is_one_line_with_file_line_and_fix(case, tmp_path):
    messages, expected = BAD_CHATS[case]
    with pytest.raises(DataError) as error:
        obtained(tmp_path, [chat("u:q", "a:y"), {"messages": messages}], tiny_tokenizer(STRICT + CHATML))
    assert str(error.value).startswith(f"{tmp_path}/a.jsonl: line 2 {expected}")
    assert "\n" not in str(error.value)


def test_a_template_whose_answers_cannot_be_found_is_refused(tmp_path):
    backwards = "{% for m in messages|reverse %}{{ m.role + m.content + '\n' }}{% endfor %}"
    with pytest.raises(
        DataError, match=r"line 1 has an answer \(message 2\) that cannot be found in the chat template"
    ):
        obtained(tmp_path, [chat("u:q", "a:y")], tiny_tokenizer(backwards))


def test_chats_need_a_chat_template(tmp_path):
    with pytest.raises(
        DataError, match=rf"^tokenizer: that of scratch has no chat template, and {tmp_path}/a.jsonl holds chats; "
    ):
        obtained(tmp_path, [chat("u:q", "a:y")])


def test_the_format_may_be_said_when_rows_have_the_fields_of_several(tmp_path):
    row = {"instruction": "i", "response": "r", "text": "t", **chat("u:q", "a:y")}
    tokenizer = tiny_tokenizer(CHATML)
    starts = {"auto": "<|im_start|>user", "chat": "<|im_start|>user", "pairs": "i?r", "text": "t<|im_end|>"}
    for name, start in starts.items():
        corpus = obtained(tmp_path, [row], tokenizer, data_format=name)
        assert shown(corpus.train, tokenizer)[0][0].startswith(start)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("some text")
    with pytest.raises(
        DataError, match=r"texts: data_format pairs cannot be read from \.txt files; write data_format=text"
    ):
        obtained(tmp_path, [row], data_train=str(tmp_path / "texts"), data_heldout="", data_format="pairs")


def test_many_rows_are_tokenised_in_several_groups(tmp_path, monkeypatch):
    rows = [{"instruction": f"i{number}", "response": "r" * (number % 7 + 1)} for number in range(50)]
    whole = shown(obtained(tmp_path, rows).train)
    (tmp_path / "again").mkdir()
    monkeypatch.setattr("training.data.formats.TOGETHER", 40)
    assert shown(obtained(tmp_path / "again", rows).train) == whole
