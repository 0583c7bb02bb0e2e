"""Chats: messages with role and content -> text by the tokenizer's chat template, with the answers marked."""

from __future__ import annotations

import re

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from training.config import Config
from training.data.rows import BadRow, DataError, text_in
from training.data.segments import Draft, Span

ROLES = ("system", "user", "assistant", "tool")
ANSWERS_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
SHAPE = '{"role": "user", "content": "..."}'
DATE = "26 Jul 2024"  # Llama 3's templates would write today's date: the same data were other tokens tomorrow


class Chats:
    """Every turn of the assistant counts, with the end mark that the template puts behind it.

    A template that marks the answers itself ({% generation %}) is believed. Otherwise the text up to the question, with
    the template's beginning of an answer, must be how the text up to the answer begins; the rest is the answer. Where
    later turns change how earlier ones are written (templates that drop former thoughts), the chat becomes one document
    per answer, each as the model would see it.
    """

    divided = False

    def __init__(self, config: Config, tokenizer):
        self.field = config.messages_field
        try:
            self.template = tokenizer.get_chat_template()
        except ValueError:
            name = config.tokenizer or config.model
            fix = "write that of an instruction-tuned model, or data_format=pairs or text"
            problem = f"that of {name} has no chat template, and {config.data_train} holds chats"
            raise DataError(f"tokenizer: {problem}; {fix}") from None
        self.marks = tokenizer.special_tokens_map
        self.answers_marked = ANSWERS_MARKED.search(self.template) is not None

    def drafts(self, content: dict) -> list[Draft]:
        messages = checked(content.get(self.field), self.field)
        try:
            return [self._marked(messages)] if self.answers_marked else self._found(messages)
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            first_line = str(error).split("\n")[0]
            problem = f"is refused by the tokenizer's chat template ({first_line})"
            raise BadRow(f"{problem}; write turns that it takes") from None

    def _marked(self, messages: list[dict]) -> Draft:
        text, spans = self._rendered(messages, return_assistant_tokens_mask=True)
        answers = tuple((first, last) for first, last in spans[0] if first < last)
        if not answers:
            raise BadRow("has no answer that the tokenizer's chat template marks; give the assistant's turns text")
        return Draft([], ((text, answers),), [])

    def _found(self, messages: list[dict]) -> list[Draft]:
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        texts, spans = zip(*(self._answer(messages, place) for place in places), strict=True)
        if all(texts[-1].startswith(text) for text in texts):
            return [Draft([], ((texts[-1], spans),), [])]
        return [Draft([], ((text, (span,)),), []) for text, span in zip(texts, spans, strict=True)]

    def _answer(self, messages: list[dict], place: int) -> tuple[str, Span]:
        """The text up to and with one answer, and the answer's span in it. Errors: BadRow."""
        question = self._rendered(messages[:place], add_generation_prompt=True)[0]
        upto = self._rendered(messages[: place + 1])[0]
        end = len(upto.rstrip())  # the line end behind the end mark is the template's, not the answer's
        if not upto.startswith(question) or end <= len(question):
            fix = "use a tokenizer whose template marks the answers with {% generation %}"
            raise BadRow(f"has an answer (message {place + 1}) that cannot be found in the chat template's text; {fix}")
        return upto, (len(question), end)

    def _rendered(self, messages: list[dict], **how: bool) -> tuple[str, list[list[Span]]]:
        texts, spans = render_jinja_template(
            [messages], chat_template=self.template, date_string=DATE, **self.marks, **how
        )
        return texts[0], spans


def checked(messages: object, field: str) -> list[dict]:
    """The messages up to the last answer. Errors: BadRow."""
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"has no list of messages in {field!r}; write [{SHAPE}, ...] or set messages_field")
    last = 0
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise BadRow(f"has a message ({number}) that is not an object; write {SHAPE}")
        role = message.get("role")
        if role not in ROLES:
            raise BadRow(f"has the unknown role {role!r} (message {number}); write one of {', '.join(ROLES)}")
        text_in(message, "content", "role", where=f" of message {number}")
        if role == "assistant":
            last = number
    if not last:
        raise BadRow("has no answer (no message with the role assistant); write one, or leave the chat out")
    # Tables write None where a message lacks a field that others have; templates take that for a value.
    return [{key: value for key, value in message.items() if value is not None} for message in messages[:last]]
