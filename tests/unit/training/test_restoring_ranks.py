"""Restore with real process groups: somebody has the newest valid checkpoint, and all get it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from training.checkpoints import CheckpointError, Checkpoints


class Held:
    def __init__(self, **state: object):
        self.state = state

    def state_dict(self) -> dict:
        return self.state

    def load_state_dict(self, state: dict) -> None:
        self.state = state


def save(directory: Path, step: int) -> Path:
    with Checkpoints(directory) as checkpoints:
        state = {"weight": torch.full((7, 3), step + 0.5), "groups": [{"lr": 0.1}], "count": torch.tensor(step)}
        assert checkpoints.save(step, {"model": Held(**state)}, epoch=step, extra={"samples": 3 * step}, wait=True)
    return directory / f"step-{step:08d}"


class Machines:
    """The directories of a run on three machines, one rank each, or all three on the first."""

    def __init__(self, root: Path, *, one: bool = False):
        self.shared, self.one = root / "shared", one
        self.local = [root / f"local-{rank}" for rank in range(3)]
        self.shared.mkdir(parents=True)
        (self.shared / "origin").write_text("life\n")


@dataclasses.dataclass
class Outcome:
    """What one rank got, or its error, and what it said."""

    found: tuple | None = None
    state: dict | None = None
    error: str = ""
    said: str = ""


def restore(rank: int, scenarios: dict[str, Machines], results: Path) -> None:
    """One rank of three goes through all scenarios: starting processes takes longer than all else."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{results}/store", timeout=timeout, rank=rank, world_size=3)
    outcomes = {}
    for name, machines in scenarios.items():
        os.environ["LOCAL_RANK"] = str(rank if machines.one else 0)
        local, held, outcome = machines.local[0 if machines.one else rank], Held(), Outcome()
        with contextlib.redirect_stdout(io.StringIO()) as said:
            try:
                with Checkpoints(machines.shared, local_dir=local) as checkpoints:
                    restored = checkpoints.restore({"model": held})
                if restored:
                    outcome.found = (restored.step, restored.epoch, restored.extra, restored.path)
                    outcome.state = held.state
            except CheckpointError as error:
                outcome.error = str(error)
        outcome.said = said.getvalue()
        outcomes[name] = outcome
    (results / str(rank)).write_bytes(pickle.dumps(outcomes))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Outcome]]:
    """Scenario -> what the three ranks got."""
    root = tmp_path_factory.mktemp("machines")
    scenarios = {name: Machines(root / name, one=name == "one machine") for name in SCENARIOS}
    for name, prepare in SCENARIOS.items():
        prepare(scenarios[name])
    torch.multiprocessing.spawn(restore, (scenarios, root), nprocs=3)
    outcomes = [pickle.loads((root / str(rank)).read_bytes()) for rank in range(3)]
    return lambda name: [of_rank[name] for of_rank in outcomes]


def spread_out(machines: Machines) -> None:
    save(machines.shared, 10)
    save(machines.local[0] / "life", 20)
    save(machines.local[2] / "life", 30)
    (save(machines.local[1] / "life", 40) / "model.safetensors").write_bytes(b"")
    save(machines.local[1] / "another life", 50)


def damaged_share(machines: Machines) -> None:
    save(machines.shared, 10)
    (save(machines.shared, 20) / "trees.pt").unlink()


def another_program(machines: Machines) -> None:
    with Checkpoints(machines.shared) as checkpoints:
        checkpoints.save(1, {"another": Held(weight=torch.ones(1))})


SCENARIOS = {
    "spread out": spread_out,
    "damaged share": damaged_share,
    "one machine": lambda machines: save(machines.local[0] / "life", 20),
    "nothing": lambda machines: None,
    "another program": another_program,
}


def test_whoever_has_the_newest_valid_one_gives_it_to_all(restored):
    outcomes = restored("spread out")
    for outcome in outcomes:
        step, epoch, extra, path = outcome.found
        assert (step, epoch, extra, path.parts[-3:]) == (30, 30, {"samples": 90}, ("local-2", "life", "step-00000030"))
        assert torch.equal(outcome.state["weight"], torch.full((7, 3), 30.5))
        assert outcome.state["groups"] == [{"lr": 0.1}]
        assert outcome.state["count"] == 30
    assert "step-00000040 skipped: model.safetensors does not match the manifest" in outcomes[1].said
    assert (outcomes[0].said, outcomes[2].said) == ("", "")


def test_a_damaged_shared_one_is_read_once_and_the_one_before_it_taken(restored):
    outcomes = restored("damaged share")
    assert [outcome.found[0] for outcome in outcomes] == [10, 10, 10]
    assert "".join(outcome.said for outcome in outcomes).count("skipped: trees.pt is missing") == 1


def test_several_ranks_of_one_machine_take_its_local_one(restored):
    assert [outcome.found[3].parts[-3:] for outcome in restored("one machine")] == [
        ("local-0", "life", "step-00000020")
    ] * 3


def test_none_on_all(restored):
    assert restored("nothing") == [Outcome()] * 3


def test_one_that_does_not_fit_is_an_error_on_all(restored):
    for outcome in restored("another program"):
        assert "step-00000001: has no 'model', only another" in outcome.error
