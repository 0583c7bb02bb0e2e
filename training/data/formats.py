"""From rows to documents: what the fields of a row mean, as tokens with the places that count in the loss.

Three formats: pairs (question and answer), chat (messages, see chat.py) and text. Tokens are made for many rows at a
time, which the fast tokenizers do on all cores.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from training.config import Config
from training.data.chat import Chats
from training.data.rows import BadRow, DataError, Row, text_in
from training.data.segments import Document, Draft, documents_of, whole
from training.data.sources import Source

TOGETHER = 1 << 21  # characters that are tokenised at a time
SHOWN = 10  # bad rows that are printed in full


class Tally:
    """What became of the rows of one source; bad ones are named, too many end the run."""

    def __init__(self, name: str):
        self.name = name
        self.rows = self.bad = self.without_answer = self.cut = 0
        self.first = ""

    def leave_out(self, row: Row, problem: BadRow) -> None:
        line = f"{row.file}: {row.place} {problem}"
        self.bad += row.lines
        self.first = self.first or line
        if self.bad <= SHOWN:
            print(f"left out: {line}", flush=True)

    def close(self, bad_rows: float, seq_len: int) -> None:
        """Say what was left out. Errors: DataError when more than the share `bad_rows` was bad."""
        if self.bad > SHOWN:
            print(f"left out: {self.name}: {self.bad - SHOWN} more rows", flush=True)
        if self.without_answer:
            problem = f"their prompt alone fills seq_len ({seq_len})"
            print(f"left out: {self.name}: {self.without_answer} rows: {problem}", flush=True)
        if self.cut:
            lost = f"their end, with its end mark, is lost beyond seq_len ({seq_len})"
            print(f"cut: {self.name}: {self.cut} rows: {lost}", flush=True)
        refuse_bad(self.facts(), bad_rows)

    def facts(self) -> dict[str, object]:
        counts = {"rows": self.rows, "bad": self.bad, "without_answer": self.without_answer, "cut": self.cut}
        return counts | {"first_bad": self.first}


def refuse_bad(facts: dict[str, object], bad_rows: float) -> None:
    """DataError when the share of bad rows in a tally's `facts` is above `bad_rows`."""
    rows, bad = facts["rows"], facts["bad"]
    if bad > bad_rows * rows:
        share = f"{bad} of {rows} rows are bad: {bad / rows:.4f}, above bad_rows ({bad_rows})"
        raise DataError(f"{facts['first_bad']}; {share}")


class Pairs:
    """A question, optional material for it and an answer; the answer and the end mark count."""

    divided = False

    def __init__(self, config: Config, tokenizer):
        self.config = config
        self.start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.end = [tokenizer.eos_token_id]

    def drafts(self, content: dict) -> list[Draft]:
        config = self.config
        answer_field = config.response_field
        if answer_field not in content and "output" in content:
            answer_field = "output"
        instruction = text_in(content, config.instruction_field, config.response_field)
        response = text_in(content, answer_field, config.instruction_field)
        input_field = config.input_field
        if input_field not in content and "input" in content:
            input_field = "input"
        material = content.get(input_field) or ""
        if isinstance(material, str) and not material.strip():
            material = ""
        if material:
            text_in(content, input_field)
            if "{input}" not in config.prompt_template:
                instruction = f"{instruction}\n\n{material}"
        values = {"instruction": instruction, "input": material}
        # In one pass: a question about templates may hold such a mark itself.
        prompt = re.sub(r"\{(instruction|input)\}", lambda mark: values[mark[1]], config.prompt_template)
        return [Draft(self.start, ((prompt, ()), whole(response)), self.end)]


class Texts:
    """One text per row, with the tokenizer's start and end marks; every token counts."""

    divided = True

    def __init__(self, config: Config, tokenizer):
        self.field = config.text_field
        self.start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.end = [tokenizer.eos_token_id]

    def drafts(self, content: dict) -> list[Draft]:
        text = content.get(self.field)
        if isinstance(text, str) and not text.strip():
            return []  # such as the empty lines of WikiText: nothing is wrong with them
        return [Draft(self.start, (whole(text_in(content, self.field)),), self.end)]


def format_of(row: Row, config: Config, tokenizer) -> Pairs | Texts | Chats:
    """The format that the config names, else the one that the fields of the row show. Errors: DataError."""
    name, fields = config.data_format, set(row.content)
    by_field = {"chat": config.messages_field, "pairs": config.instruction_field, "text": config.text_field}
    if name == "auto":
        name = next((name for name, field in by_field.items() if field in fields), None)
        if name is None:
            wanted = ", ".join(by_field.values())
            has = ", ".join(sorted(map(str, fields))) or "none"
            raise DataError(
                f"{row.file}: {row.place} has none of the fields {wanted} but {has}; "
                "set messages_field, instruction_field or text_field to what the rows have"
            )
    return {"chat": Chats, "pairs": Pairs, "text": Texts}[name](config, tokenizer)


def documents(source: Source, config: Config, tokenizer, tally: Tally) -> Iterator[list[Document]]:
    """The documents of each row (a long text is divided into several), as they are read.

    Errors: DataError (a file that cannot be read, a format that is not there; the tally refuses later).
    """
    if source.kind == ".txt":
        yield from _running_text(source, config, tokenizer, tally)
        return
    form, seq_len, waiting, characters = None, config.seq_len, [], 0
    for row in source.rows(_fields(config)):
        tally.rows += row.lines
        try:
            if isinstance(row.content, BadRow):
                raise row.content
            if not isinstance(row.content, dict):
                raise BadRow('is not an object with fields; write {"instruction": "...", "response": "..."} or such')
            form = form or format_of(row, config, tokenizer)
            drafts = form.drafts(row.content)
        except BadRow as problem:
            tally.leave_out(row, problem)
            continue
        waiting.append(drafts)
        characters += sum(len(text) for draft in drafts for text, _ in draft.segments)
        if characters > TOGETHER:
            yield from _fitted(waiting, form.divided, tokenizer, seq_len, tally)
            waiting, characters = [], 0
    if waiting:
        yield from _fitted(waiting, form.divided, tokenizer, seq_len, tally)


def _fields(config: Config) -> set[str]:
    named = {getattr(config, key) for key in ("instruction_field", "input_field", "response_field")}
    return named | {"input", "output", config.messages_field, config.text_field}


def _fitted(rows: list[list[Draft]], divided: bool, tokenizer, seq_len: int, tally: Tally) -> Iterator[list[Document]]:
    drafts_of_all = [draft for drafts in rows for draft in drafts]
    made = documents_of(drafts_of_all, tokenizer) if drafts_of_all else iter(())  # of blank texts alone
    for drafts in rows:
        own = itertools.islice(made, len(drafts))
        if divided:
            yield [piece for document in own for piece in document.divided(seq_len)]
            continue
        cut = []
        for document in own:
            cut.append(document.cut(seq_len))
            tally.cut += len(document.tokens) > seq_len and bool(cut[-1].counts)
        tally.without_answer += sum(not document.counts for document in cut)
        yield [document for document in cut if document.counts]


def _running_text(source: Source, config: Config, tokenizer, tally: Tally) -> Iterator[list[Document]]:
    """Each file is one running text without marks, divided into documents of seq_len tokens."""
    if config.data_format not in ("auto", "text"):
        fix = "write data_format=text, or give rows in a .jsonl file"
        raise DataError(f"{source.name}: data_format {config.data_format} cannot be read from .txt files; {fix}")
    seq_len, rest, file = config.seq_len, [], None
    for row in source.rows(()):
        tally.rows += row.lines
        if isinstance(row.content, BadRow):
            tally.leave_out(row, row.content)
            continue
        if row.file != file:
            yield Document.of_text(rest).divided(seq_len)
            rest, file = [], row.file
        rest += tokenizer(row.content, add_special_tokens=False, verbose=False).input_ids
        ready = len(rest) - len(rest) % seq_len
        yield Document.of_text(rest[:ready]).divided(seq_len)
        rest = rest[ready:]
    yield Document.of_text(rest).divided(seq_len)
