"""Where rows come from: a file, a directory of files of one kind, or a data set of the hub.

Rows are read one after the other, so data may be larger than the memory (a .json file with one big list is the
exception: it is parsed as a whole). A row that cannot be read comes as a `BadRow` with its place; whoever asks for the
rows decides what becomes of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path

from training.config import Config
from training.data.readers import ROWS, read_rows
from training.data.rows import DataError, Row, unreadable
from training.files import sha256_of
from training.settings import DATA_FILES, HUB


@dataclasses.dataclass(kw_only=True, frozen=True)
class Files:
    """One or more files of the same kind (`.jsonl`, ...), read in this order."""

    name: str
    kind: str
    paths: tuple[Path, ...]

    def contents(self) -> list[str]:
        """Hex SHA-256 of each file, in order."""
        return [sha256_of(path) for path in self.paths]

    def rows(self, fields: Collection[str]) -> Iterator[Row]:
        """All rows; of tables only the columns in `fields`. Errors: DataError (a file that cannot be read at all)."""
        for path in self.paths:
            yield from read_rows(path, self.kind, fields)


@dataclasses.dataclass(kw_only=True, frozen=True)
class HubSplit:
    """One split of a data set of the hub, as the `datasets` library holds it (on disk, not in memory)."""

    name: str
    table: object
    kind: str = HUB

    def contents(self) -> list[str]:
        """Hex SHA-256 of all rows: the files that `datasets` keeps differ from machine to machine."""
        digest = hashlib.sha256()
        for row in self.rows(self.table.column_names):
            digest.update(json.dumps(row.content, sort_keys=True, default=repr).encode())
        return [digest.hexdigest()]

    def rows(self, fields: Collection[str]) -> Iterator[Row]:
        columns = [name for name in self.table.column_names if name in fields] or self.table.column_names
        number = 0
        for batch in self.table.select_columns(columns).iter(batch_size=ROWS):
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield Row(self.name, f"row {number}", dict(zip(batch, values, strict=True)))


Source = Files | HubSplit


def find_sources(config: Config) -> tuple[Source, Source | None]:
    """The training and, where the config names one, the held-out source. Errors: DataError."""
    if config.data_train.startswith(HUB):
        heldout = _from_hub(config, "data_split_heldout") if config.data_split_heldout else None
        return _from_hub(config, "data_split_train"), heldout
    return _from_disk(config, "data_train"), _from_disk(config, "data_heldout") if config.data_heldout else None


def _from_disk(config: Config, key: str) -> Files:
    path = Path(getattr(config, key))
    if not path.exists():
        raise DataError(f"{path}: no such file (from {Path.cwd()}); correct {key}")
    paths = [path]
    if path.is_dir():
        inside = (entry for entry in path.iterdir() if entry.suffix in DATA_FILES and not entry.name.startswith("."))
        paths = sorted(inside)
        if not paths:
            raise DataError(f"{path}: holds no {', '.join(DATA_FILES)} file; put data there or correct {key}")
    kinds = sorted({entry.suffix for entry in paths})
    if len(kinds) > 1:
        raise DataError(f"{path}: holds {' and '.join(kinds)} files; keep one kind there or name one file in {key}")
    if kinds[0] not in DATA_FILES:
        raise DataError(f"{path}: is neither a directory nor a {', '.join(DATA_FILES)} file; correct {key}")
    for entry in paths:
        try:
            with entry.open("rb") as stream:
                empty = not stream.read(1)
        except OSError as error:
            raise unreadable(entry, error) from None
        if empty:
            raise DataError(f"{entry}: is empty; put data there, delete it or correct {key}")
    return Files(name=str(path), kind=kinds[0], paths=tuple(paths))


def _from_hub(config: Config, key: str) -> HubSplit:
    import datasets  # takes seconds, and most runs read files

    name, split = config.data_train.removeprefix(HUB), getattr(config, key)
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(name, name=config.data_hub_config or None, split=split)
    except Exception as error:  # one of a dozen classes of four libraries
        first_line = str(error).strip().split("\n")[0]
        fix = f"correct data_train, data_hub_config or {key}, or look at the network and HF_TOKEN"
        raise DataError(f"{config.data_train}: cannot be loaded ({first_line}); {fix}") from None
    return HubSplit(name=f"{config.data_train} ({split})", table=table)
