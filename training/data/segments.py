"""Texts with marked parts -> tokens with marked places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

Span = tuple[int, int]  # first, last (excluded)


class Draft(NamedTuple):
    """A document before it is tokenised.

    start     tokens in front that do not count
    segments  texts, tokenised one by one, each with the spans of its characters that count in the loss
    end       tokens behind that count
    """

    start: list[int]
    segments: tuple[tuple[str, tuple[Span, ...]], ...]
    end: list[int]


def whole(text: str) -> tuple[str, tuple[Span, ...]]:
    """A segment of which everything counts."""
    return text, ((0, len(text)),)


class Document(NamedTuple):
    """Token numbers and the spans of those that count in the loss; the first token never does, since nothing
    predicts it.
    """

    tokens: list[int]
    counts: list[Span]

    @classmethod
    def of_text(cls, tokens: list[int]) -> Document:
        return cls(tokens, [(0, len(tokens))])

    def cut(self, length: int) -> Document:
        """The first `length` tokens."""
        clipped = ((max(1, first), min(last, length)) for first, last in self.counts)
        return Document(self.tokens[:length], [(first, last) for first, last in clipped if first < last])

    def divided(self, length: int) -> list[Document]:
        """Pieces of `length` tokens of a text; a last one of a single token is dropped: it predicts nothing."""
        pieces = (self.tokens[at : at + length] for at in range(0, len(self.tokens), length))
        return [Document(piece, [(1, len(piece))]) for piece in pieces if len(piece) > 1]


def documents_of(drafts: Sequence[Draft], tokenizer) -> Iterator[Document]:
    """One document per draft; the texts of all drafts are tokenised together.

    Which tokens of a partly marked text count is read off the tokenizer's offsets; for a tokenizer that has none the
    text is tokenised in parts.
    """
    if not tokenizer.is_fast:
        drafts = [draft._replace(segments=tuple(_parts(draft.segments))) for draft in drafts]
    texts = [text for draft in drafts for text, _ in draft.segments]
    partly = any(spans not in ((), ((0, len(text)),)) for draft in drafts for text, spans in draft.segments)
    made = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=partly, verbose=False)
    offsets = iter(made["offset_mapping"] if partly else texts)
    numbers = iter(made["input_ids"])
    for draft in drafts:
        tokens, counts = list(draft.start), []
        for text, spans in draft.segments:
            before, own, places = len(tokens), next(numbers), next(offsets)
            tokens += own
            if spans == ((0, len(text)),):
                counts.append((before, len(tokens)))
            elif spans:
                counts += ((before + first, before + last) for first, last in _token_spans(places, spans))
        if draft.end:
            counts.append((len(tokens), len(tokens) + len(draft.end)))
        yield Document(tokens + draft.end, counts)


def _token_spans(offsets: list[Span], spans: Sequence[Span]) -> Iterator[Span]:
    """Spans of the tokens that begin within the spans of characters (both ascending)."""
    at = 0
    for first, last in spans:
        while at < len(offsets) and offsets[at][0] < first:
            at += 1
        begin = at
        while at < len(offsets) and offsets[at][0] < last:
            at += 1
        if at > begin:
            yield begin, at


def _parts(segments: Sequence[tuple[str, tuple[Span, ...]]]) -> Iterator[tuple[str, tuple[Span, ...]]]:
    for text, spans in segments:
        at = 0
        for first, last in spans:
            if first > at:
                yield text[at:first], ()
            yield whole(text[first:last])
            at = last
        if at < len(text):
            yield text[at:], ()
