"""The kinds of file, read row by row; a row that cannot be read comes as a `BadRow` with its place."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path

from training.data.rows import BadRow, DataError, Row, unreadable

PIECE = 1 << 18  # bytes of running text that are handed on at a time
ROWS = 1000  # rows of a table that are turned into Python objects at a time


def read_rows(path: Path, kind: str, fields: Collection[str]) -> Iterator[Row]:
    """All rows of a file of `kind` (`.jsonl`, ...), of a table only the columns in `fields`.

    Errors: DataError (a file that cannot be read at all).
    """
    read = {".jsonl": _lines, ".json": _json, ".txt": _running_text}.get(kind)
    try:
        yield from read(path) if read else _parquet(path, fields)
    except OSError as error:
        raise unreadable(path, error) from None


def _lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield Row(str(path), f"line {number}", _parsed(line))


def _parsed(line: bytes) -> object | BadRow:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return _not_utf8()
    except json.JSONDecodeError as error:
        return BadRow(f"is not valid JSON ({error.msg}); write one object per line")
    except (RecursionError, ValueError) as error:  # a thousand brackets, a number of ten thousand digits
        return BadRow(f"cannot be read as JSON ({str(error).split(':')[0]}); write one object of texts per line")


def _not_utf8() -> BadRow:
    return BadRow("is not UTF-8; convert the file, for example with iconv")


def _json(path: Path) -> Iterator[Row]:
    with path.open("rb") as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _lines(path)
        return
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line} {_not_utf8()}") from None
    except json.JSONDecodeError as error:
        fix = "write a list of objects, or one object per line"
        raise DataError(f"{path}: line {error.lineno} is not valid JSON ({error.msg}); {fix}") from None
    for number, content in enumerate(rows, start=1):
        yield Row(str(path), f"row {number}", content)


def _parquet(path: Path, fields: Collection[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            columns = [name for name in names if name in fields] or names
            for batch in table.iter_batches(batch_size=ROWS, columns=columns):
                for content in batch.to_pylist():
                    number += 1
                    yield Row(str(path), f"row {number}", content)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the system's own; pyarrow's have no number
            raise
        problem = str(error).split("\n")[0]
        fix = "write the file again, for example with pandas"
        raise DataError(f"{path}: cannot be read as Parquet after row {number} ({problem}); {fix}") from None


def _running_text(path: Path) -> Iterator[Row]:
    number, rest = 1, b""
    with path.open("rb") as stream:
        if stream.read(3) != b"\xef\xbb\xbf":
            stream.seek(0)
        while block := stream.read(PIECE):
            rest += block
            # Cut where a tokenizer would: behind a line, else in front of a word; without either it is read on.
            cut = rest.rfind(b"\n") + 1 or max(0, rest.rfind(b" "))
            if cut:
                yield from _decoded(path, number, rest[:cut])
                number += rest.count(b"\n", 0, cut)
                rest = rest[cut:]
    if rest:
        yield from _decoded(path, number, rest)


def _decoded(path: Path, number: int, piece: bytes) -> Iterator[Row]:
    """The piece as text; where it is not UTF-8, line by line."""
    lines = piece.count(b"\n") + (not piece.endswith(b"\n"))
    try:
        yield Row(str(path), f"line {number}", piece.decode().replace("\r\n", "\n"), lines)
    except UnicodeDecodeError:
        if lines == 1:
            yield Row(str(path), f"line {number}", _not_utf8())
            return
        for offset, line in enumerate(io.BytesIO(piece)):
            yield from _decoded(path, number + offset, line)
