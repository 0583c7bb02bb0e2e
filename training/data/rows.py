"""What a row is before anybody knows its format, and what is wrong with one that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from training.errors import UserError


class DataError(UserError):
    """Data that cannot be used; the message is one line with file, place in it and the fix."""


class BadRow(ValueError):
    """Why one row cannot be used: `is not valid JSON (...); write ...`."""


class Row(NamedTuple):
    """One row, or a piece of running text (then `lines` of the file)."""

    file: str
    place: str
    content: object | BadRow
    lines: int = 1


def unreadable(path: Path, error: OSError) -> DataError:
    """The one line for a file that the system does not let us read."""
    problem = error.strerror or str(error).split("\n")[0]
    return DataError(f"{path}: cannot be read ({problem}); correct its path or its rights")


def text_in(content: dict, field: str, *others: str, where: str = "") -> str:
    """The text of a field. Errors: BadRow when there is none, or none that can be written as UTF-8."""
    value = content.get(field)
    if not isinstance(value, str) or not value.strip():
        shape = "{" + ", ".join(f'"{name}": "..."' for name in sorted((field, *others))) + "}"
        raise BadRow(f"has no text in {field!r}{where}; write {shape} or set *_field in the config")
    try:
        value.encode()
    except UnicodeEncodeError:
        problem = f"has half a character (a lone surrogate) in {field!r}{where}"
        raise BadRow(f"{problem}; write the character whole") from None
    return value
