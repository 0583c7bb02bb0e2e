"""How the ranks find the newest valid checkpoint that any of them can see, and all load it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from training.checkpoints import ranks
from training.checkpoints.layout import Stored, read_into, stored_in, unflatten
from training.errors import UserError
from training.storage.steps import PROGRESS, TREES, Steps, step_of


class CheckpointError(UserError):
    """A checkpoint, or a state to save, that cannot be used; one line with the place and the fix."""


class Stateful(Protocol):
    """Models, optimizers, learning rate schedules, and whatever else has these two methods."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> object: ...


@dataclasses.dataclass(kw_only=True, frozen=True)
class Restored:
    """Where a run goes on: what was given to `save`, and which checkpoint it came from."""

    step: int
    epoch: int
    extra: dict[str, object]
    path: Path


@dataclasses.dataclass(kw_only=True, frozen=True, order=True)
class Proposal:
    """A checkpoint that rank -`minus_rank` can see; the greatest is the best: the newest, then local, then rank 0's."""

    step: int
    local: bool
    minus_rank: int


class Restoring:
    """One search through `places`: the directory of all machines, "shared", and perhaps this machine's, "local"."""

    def __init__(self, places: Mapping[str, Steps]):
        self.places = places
        self.refused: set[Path] = set()

    def restore(self, statefuls: Mapping[str, Stateful]) -> Restored | None:
        """See Checkpoints.restore."""
        while proposals := [proposal for proposal in ranks.gather(self._propose()) if proposal]:
            best = max(proposals)
            offer = ranks.tell(self._offer(best) if ranks.rank() == -best.minus_rank else None, -best.minus_rank)
            path = Path(offer["path"])  # as it is called on that rank's machine
            if "problem" not in offer:
                for name, stateful in statefuls.items():
                    self._load(name, stateful, path, offer, source=-best.minus_rank)
                progress = offer["progress"]
                return Restored(step=best.step, epoch=progress["epoch"], extra=progress["extra"], path=path)
            if ranks.rank() == -best.minus_rank:
                print(f"checkpoint {path} skipped: {offer['problem']}", flush=True)
            if ranks.rank() == -best.minus_rank or not best.local:
                self.refused.add(path)
        if self.refused:
            print("no valid checkpoint is left: this run starts from its beginning", flush=True)
        return None

    def _propose(self) -> Proposal | None:
        """The newest checkpoint that this rank can see, valid or not."""
        if os.environ.get("LOCAL_RANK", "0") != "0":  # one process looks for all of its machine
            return None
        found = [
            Proposal(step=step_of(path), local=place == "local", minus_rank=-ranks.rank())
            for place, steps in self.places.items()
            for path in steps.visible()
            if path not in self.refused
        ]
        return max(found, default=None)

    def _offer(self, proposal: Proposal) -> dict[str, object]:
        """What the other ranks must know before the tensors come, or {"path", "problem": why it cannot be used}."""
        steps = self.places["local" if proposal.local else "shared"]
        path = steps.path(proposal.step)
        try:
            if problem := steps.problem(path):
                return {"path": str(path), "problem": problem}
            return {
                "path": str(path),
                "progress": json.loads((path / PROGRESS).read_text(encoding="utf-8")),
                "trees": (path / TREES).read_bytes(),
                "stored": {file.stem: stored_in(file) for file in path.glob("*.safetensors")},
            }
        except (OSError, ValueError) as error:
            return {"path": str(path), "problem": str(error)}

    def _load(self, name: str, stateful: Stateful, path: Path, offer: Mapping, source: int) -> None:
        """Read the state of one stateful on rank `source`, send it to all, and load it."""
        if name not in offer["stored"]:
            raise CheckpointError(f"{path}: has no {name!r}, only {', '.join(offer['stored'])}; use another directory")
        file = path / f"{name}.safetensors"
        tensors = self._tensors(file, offer["stored"][name], source)
        tree = torch.load(io.BytesIO(offer["trees"]), map_location="cpu", weights_only=True)[name]
        try:
            stateful.load_state_dict(unflatten(tree, tensors))
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{path}: {name} does not fit ({reason}); use another directory") from error

    def _tensors(self, file: Path, places: Mapping[str, Stored], source: int) -> dict[str, torch.Tensor]:
        """The tensors of `file` on rank `source`, sent to all: each in memory of its own, the whole file nowhere."""
        tensors = {}
        with file.open("rb", buffering=0) if ranks.rank() == source else contextlib.nullcontext() as stream:
            for name, stored in places.items():
                tensors[name] = torch.empty(stored.shape, dtype=stored.dtype)
                content = tensors[name].reshape(-1).view(torch.uint8)
                if stream:
                    read_into(content, stream, stored.at)
                if len(content):
                    ranks.tell_bytes(content, source)
        return tensors
