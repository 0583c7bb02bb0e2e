"""Where a run keeps what: the job's directory that everybody sees, and this node's own disk."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

from training.config import Config
from training.errors import UserError

PREPARED = "prepared.json"
RECORDS = ("metrics/metrics.jsonl", "ledger.jsonl")  # what a start on another node goes on behind


@dataclasses.dataclass(kw_only=True, frozen=True)
class Folders:
    """The directories of one process.

    `job` is shared where there are several nodes, `local` is this node's own (None: one machine, `job` serves for
    all), `prepared` holds what `python -m training.prepare` made (None: made at the start).
    """

    job: Path
    local: Path | None = None
    prepared: Path | None = None

    @property
    def checkpoints(self) -> Path:
        return self.job / "checkpoints"

    @property
    def local_checkpoints(self) -> Path | None:
        return self.local and self.local / "checkpoints"

    @property
    def records(self) -> Path:
        """What rank 0 writes during training; from a node's own disk the courier carries it to `job`."""
        return self.local / "records" if self.local else self.job

    @property
    def data(self) -> Path:
        """This node's copy of the packed data."""
        return (self.local or self.job) / "data"

    def packed(self) -> Path | None:
        """The packed data that were prepared. Errors: UserError when they were not."""
        return self.prepared and self.prepared / str(self._prepared["packed"])

    def prepared_for(self) -> str:
        """The digest of the config that the data were prepared for; empty where nobody has said."""
        return str(self._prepared.get("config_sha256", "")) if self.prepared else ""

    def as_fetched(self, config: Config) -> Config:
        """`config` with the hub ids replaced by the directories that hold what was fetched."""
        if self.prepared is None:
            return config
        fetched = {key: path for key in ("model", "tokenizer") if (path := self._prepared.get(key))}
        return dataclasses.replace(config, **fetched)

    def hand_over(self, record: Path) -> None:
        """Copy a record of a rank that has no courier into the job's directory."""
        if self.local and record.exists():
            target = self.job / record.relative_to(self.records)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(record, target)
            except OSError as error:
                print(f"{record} stays here: {error}", flush=True)

    @functools.cached_property
    def _prepared(self) -> dict[str, object]:
        """Read once: another preparation may write it meanwhile, and all of it is to be of one."""
        file = self.prepared / PREPARED
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            facts["packed"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: cannot be read ({error!r}); run `python -m training.prepare` again") from None
        return facts
