"""Save and restore in one process: what comes back, what is skipped, what stays, what is refused."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch

from training.checkpoints import CheckpointError, Checkpoints
from training.files import hidden_path, sha256_of


class Held:
    """The smallest thing that has a state."""

    def __init__(self, **state: object):
        self.state = state

    def state_dict(self) -> dict:
        return self.state

    def load_state_dict(self, state: dict) -> None:
        self.state = state


def save(directory: Path, *steps: int, keep: int = 2) -> Path:
    """Save `steps` one after the other; returns the last one's path."""
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, {"model": Held(weight=torch.full((4, 3), float(step)))}, wait=True)
    return directory / f"step-{steps[-1]:08d}"


def restored_step(directory: Path) -> int | None:
    held = Held()
    restored = Checkpoints(directory).restore({"model": held})
    if restored:
        assert torch.equal(held.state["weight"], torch.full((4, 3), float(restored.step)))
    return restored and restored.step


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def flip_a_bit(path: Path) -> None:
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def drop_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def drop_a_file(path: Path) -> None:
    (path / "progress.json").unlink()


def forget_a_file(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]["trees.pt"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "trees.pt").unlink()


def spoil_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{")


def empty_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


DAMAGES = [truncate, flip_a_bit, drop_manifest, drop_a_file, forget_a_file, spoil_manifest, empty_manifest]


def test_everything_comes_back_as_it_was(tmp_path):
    tied = torch.arange(6.0).reshape(2, 3)
    state = {
        "tensors": {
            str(dtype): torch.tensor([[0, 1, 1]]).to(dtype) for dtype in (torch.int8, torch.bfloat16, torch.bool)
        },
        "odd sizes": [torch.ones(3, dtype=torch.uint8), torch.arange(5), torch.empty(0, 4), torch.tensor(2.5)],
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "complex": torch.tensor([1 + 2j]),
        "tied": (tied, tied),
        "a.b": torch.tensor(1.0),
        "a": {"b": torch.tensor(2.0)},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0, 1], "name": None}],
        3: torch.tensor(3.0),
    }
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(7, {"any": Held(**{"state": state})}, epoch=2, extra={"samples": [1, 2.5]}, wait=True)
    held = Held()
    restored = Checkpoints(tmp_path).restore({"any": held})
    assert (restored.step, restored.epoch, restored.extra) == (7, 2, {"samples": [1, 2.5]})
    assert restored.path == tmp_path / "step-00000007"
    groups = held.state["state"].pop("param_groups")
    assert groups == state.pop("param_groups")
    assert isinstance(groups[0]["betas"], tuple)
    torch.testing.assert_close(held.state["state"], state, rtol=0, atol=0)
    first, second = held.state["state"]["tied"]
    assert first.data_ptr() == second.data_ptr()
    torch.save(held.state, io.BytesIO())  # refuses tensors of different types that share memory


def test_an_optimizer_goes_on_with_the_same_bits(tmp_path):
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(2, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = make()
    step(model, optimizer)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"model": model, "optimizer": optimizer})
    step(model, optimizer)
    again, its_optimizer = make()
    Checkpoints(tmp_path).restore({"model": again, "optimizer": its_optimizer})
    step(again, its_optimizer)
    assert torch.equal(model.weight, again.weight)


def test_every_tensor_has_memory_of_its_own(tmp_path):
    """Otherwise one moment of an optimizer would keep the bytes of the whole file."""
    state = {"a": torch.ones(5), "empty": torch.ones(0, 3), "one": torch.tensor(2.0), "half": torch.ones(3).half()}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(1, {"model": Held(**state)}, wait=True)
    held = Held()
    Checkpoints(tmp_path).restore({"model": held})
    for name, tensor in held.state.items():
        assert torch.equal(tensor, state[name])
        assert tensor.untyped_storage().nbytes() == state[name].numel() * state[name].element_size()


def test_the_state_is_that_of_the_moment_of_the_call(tmp_path):
    weight = torch.ones(200_000)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"model": Held(weight=weight)})
        weight.zero_()
    held = Held()
    Checkpoints(tmp_path).restore({"model": held})
    assert torch.equal(held.state["weight"], torch.ones(200_000))


def test_other_programs_can_read_the_tensors(tmp_path):
    path = save(tmp_path, 3)
    assert torch.equal(safetensors.torch.load_file(path / "model.safetensors")["weight"], torch.full((4, 3), 3.0))


def test_the_memory_grows_with_the_state(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, size in enumerate((10, 50_000, 20), start=1):
            assert checkpoints.save(step, {"model": Held(weight=torch.full((size,), float(step)))}, wait=True)
            held = Held()
            assert Checkpoints(tmp_path).restore({"model": held}).step == step
            assert torch.equal(held.state["weight"], torch.full((size,), float(step)))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_ones_are_skipped_with_a_word(damage, tmp_path, capsys):
    path = save(tmp_path, 1, 2)
    damage(path)
    assert restored_step(tmp_path) == 1
    assert f"checkpoint {path} skipped: " in capsys.readouterr().out


def test_none_without_any(tmp_path, capsys):
    assert restored_step(tmp_path / "absent") is None
    assert capsys.readouterr().out == ""


def test_none_when_all_are_damaged_and_it_says_so(tmp_path, capsys):
    truncate(save(tmp_path, 1))
    assert restored_step(tmp_path) is None
    assert "no valid checkpoint is left" in capsys.readouterr().out


def test_keeps_the_newest(tmp_path):
    save(tmp_path, *range(1, 7), keep=3)
    assert names_in(tmp_path) == [f"step-{step:08d}" for step in (4, 5, 6)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_ones_do_not_push_valid_ones_out(damage, tmp_path):
    damage(save(tmp_path, 1, 2, 3))
    save(tmp_path, 4)  # another process, after a restart
    assert names_in(tmp_path) == ["step-00000002", "step-00000004"]


def test_one_that_is_damaged_after_it_was_written_does_not_count_either(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"model": Held(weight=torch.ones(1))}, wait=True)
        flip_a_bit(tmp_path / "step-00000002")
        checkpoints.save(3, {"model": Held(weight=torch.ones(1))}, wait=True)
    assert names_in(tmp_path) == ["step-00000001", "step-00000003"]


def test_a_damaged_one_is_replaced_by_the_same_step(tmp_path):
    truncate(save(tmp_path, 5))
    save(tmp_path, 5)
    assert restored_step(tmp_path) == 5


def test_a_valid_one_is_not_written_again(tmp_path):
    before = (save(tmp_path, 5) / "model.safetensors").stat().st_ino
    assert (save(tmp_path, 5) / "model.safetensors").stat().st_ino == before


def test_leftovers_of_killed_processes_are_swept_and_those_of_living_ones_stay(tmp_path):
    dead = tmp_path / f".writing-step-00000009-{os.uname().nodename}-4194305"  # above the largest process id
    elsewhere = tmp_path / ".writing-step-00000009-another_node-1"
    alive = hidden_path(tmp_path / "step-00000009", "writing")
    for leftover in (dead, elsewhere, alive):
        leftover.mkdir()
        (leftover / "model.safetensors").write_bytes(b"half")
    assert restored_step(tmp_path) is None
    save(tmp_path, 1)
    assert names_in(tmp_path) == [alive.name, "step-00000001"]


def test_foreign_code_is_not_run(tmp_path):
    path = save(tmp_path, 1)
    torch.save({"model": os.system}, path / "trees.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["trees.pt"] = sha256_of(path / "trees.pt")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match="Weights only load failed"):
        restored_step(tmp_path)


@pytest.mark.parametrize(
    ("state", "extra", "names"),
    [
        ({"object": Held()}, {}, "Held"),
        ({"weight": torch.ones(1)}, {"path": Path("x")}, "PosixPath"),
    ],
)
def test_what_could_not_be_read_again_is_refused_at_the_save(state, extra, names, tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match=rf"step 1 cannot be saved.*{names}"),
    ):
        checkpoints.save(1, {"model": Held(**state)}, extra=extra)


def test_another_model_is_refused_with_the_path(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"model": torch.nn.Linear(2, 2)})
    with pytest.raises(CheckpointError, match=r"step-00000001: model does not fit .*size mismatch"):
        Checkpoints(tmp_path).restore({"model": torch.nn.Linear(3, 3)})
    with pytest.raises(CheckpointError, match=r"step-00000001: has no 'optimizer', only model"):
        Checkpoints(tmp_path).restore({"optimizer": torch.nn.Linear(3, 3)})


def test_a_save_during_a_save_is_skipped_and_one_that_waits_is_not(tmp_path, capsys):
    weight = Held(weight=torch.ones(2_000_000))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"model": weight}, wait=True)
        os.kill(checkpoints._writer.pid, signal.SIGSTOP)
        try:
            assert checkpoints.save(2, {"model": weight})
            assert not checkpoints.save(3, {"model": weight})
        finally:
            os.kill(checkpoints._writer.pid, signal.SIGCONT)
        assert checkpoints.save(4, {"model": weight}, wait=True)
    assert names_in(tmp_path) == ["step-00000002", "step-00000004"]
    assert "checkpoint of step 3 skipped: step 2 is still being written" in capsys.readouterr().out


def test_a_dead_writer_is_followed_by_another(tmp_path, capsys):
    held = Held(weight=torch.ones(10))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"model": held}, wait=True)
        os.kill(checkpoints._writer.pid, signal.SIGSTOP)
        checkpoints.save(2, {"model": held})
        os.kill(checkpoints._writer.pid, signal.SIGKILL)
        assert not checkpoints._written()
        assert "has ended (status -9), no checkpoint of step 2" in checkpoints.alarm
        assert checkpoints.save(3, {"model": held}, wait=True)
        assert checkpoints.alarm == ""
    assert names_in(tmp_path) == ["step-00000001", "step-00000003"]
    said = capsys.readouterr().out
    assert said.count("alarm: ") == 1
    assert "step-00000003 is written" in said


def test_the_writer_is_deaf_to_the_signals_of_a_stop(tmp_path):
    held = Held(weight=torch.ones(10))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"model": held}, wait=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(checkpoints._writer.pid, number)
        assert checkpoints.save(2, {"model": held}, wait=True)
        assert checkpoints.alarm == ""


def test_local_ones_are_preferred_pushed_and_forgotten_with_the_run(tmp_path):
    shared, local = tmp_path / "share/checkpoints", tmp_path / "local"
    with Checkpoints(shared, local_dir=local) as checkpoints:
        assert checkpoints.restore({}) is None
        checkpoints.save(1, {"model": Held(weight=torch.full((4, 3), 1.0))})
    assert names_in(shared) == ["step-00000001"]
    with Checkpoints(shared, local_dir=local) as checkpoints:
        assert checkpoints.restore({"model": Held()}).path.is_relative_to(local)
    for directory in (shared / "step-00000001", shared):
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()
    with Checkpoints(shared, local_dir=local) as checkpoints:
        assert checkpoints.restore({"model": Held()}) is None


def test_too_little_memory_is_an_alarm(tmp_path, monkeypatch):
    monkeypatch.setattr("training.checkpoints.snapshot._available_memory", lambda: 1000)
    with Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.save(1, {"model": Held(weight=torch.ones(10))})
        assert "0 MB are there" in checkpoints.alarm


def test_what_a_limit_forbids_is_an_alarm_and_the_next_save_tries_again(tmp_path, monkeypatch):
    """A limit of memory or of processes, which no look at the machine's memory foresees."""

    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with Checkpoints(tmp_path) as checkpoints:
        for name in ("snapshot.os.memfd_create", "snapshot.os.ftruncate", "api.Child"):
            what = f"training.checkpoints.{name}"
            with monkeypatch.context() as limited:
                limited.setattr(what, refuse)
                assert not checkpoints.save(1, {"model": Held(weight=torch.ones(10))}, wait=True)
                assert checkpoints.alarm == "no checkpoint of step 1: [Errno 12] Cannot allocate memory"
        assert checkpoints.save(2, {"model": Held(weight=torch.ones(10))}, wait=True)
        assert checkpoints.alarm == ""


def test_keep_must_be_two_at_least(tmp_path):
    with pytest.raises(ValueError, match="keep: 1 cannot be used; write 2 or more"):
        Checkpoints(tmp_path, keep=1)
