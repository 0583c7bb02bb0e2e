from __future__ import annotations

import json

import pytest
import torch

from training.checkpoint import CheckpointError, Checkpoints, Progress


def save(checkpoints, step):
    model = {"weight": torch.full((4, 3), float(step))}
    optimizer = {
        "state": {0: {"step": torch.tensor(float(step))}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    }
    return checkpoints.save(step, model, optimizer, Progress(step=step, samples=3 * step))


def truncate(path):
    file = path / "model.pt"
    file.write_bytes(file.read_bytes()[:-10])


def flip_a_bit(path):
    file = path / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def drop_manifest(path):
    (path / "manifest.json").unlink()


def drop_a_file(path):
    (path / "progress.json").unlink()


def forget_a_file(path):
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]["model.pt"]
    (path / "manifest.json").write_text(json.dumps(manifest))


def spoil_manifest(path):
    (path / "manifest.json").write_text("{")


DAMAGES = [truncate, flip_a_bit, drop_manifest, drop_a_file, forget_a_file, spoil_manifest]


def test_comes_back_as_it_was_saved(tmp_path):
    path = save(Checkpoints(tmp_path, 2), 7)
    assert path == tmp_path / "step-00000007"
    reader = Checkpoints(tmp_path, 2)
    assert reader.newest() == 7
    model, optimizer, progress = reader.load(7, torch.device("cpu"))
    assert torch.equal(model["weight"], torch.full((4, 3), 7.0))
    assert optimizer["param_groups"] == [{"lr": 0.1, "params": [0]}]
    assert progress == Progress(step=7, samples=21)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_ones_are_skipped_with_a_word(damage, tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, 2)
    save(checkpoints, 1)
    path = save(checkpoints, 2)
    damage(path)
    assert Checkpoints(tmp_path, 2).newest() == 1
    assert f"checkpoint {path} skipped: " in capsys.readouterr().out


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_ones_are_not_loaded(damage, tmp_path):
    damage(save(Checkpoints(tmp_path, 2), 1))
    with pytest.raises(CheckpointError, match="step-00000001"):
        Checkpoints(tmp_path, 2).load(1, torch.device("cpu"), wait=0)


def test_none_without_any(tmp_path):
    assert Checkpoints(tmp_path / "absent", 2).newest() is None


def test_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, 3)
    for step in range(1, 7):
        save(checkpoints, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in (4, 5, 6)]


def test_damaged_ones_do_not_push_valid_ones_out(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (1, 2, 3):
        save(checkpoints, step)
    drop_manifest(tmp_path / "step-00000003")
    save(Checkpoints(tmp_path, 2), 4)  # another process, after a restart
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]


def test_a_damaged_one_is_replaced_by_the_same_step(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    truncate(save(checkpoints, 5))
    again = Checkpoints(tmp_path, 2)
    save(again, 5)
    assert Checkpoints(tmp_path, 2).newest() == 5


def test_leftovers_of_a_killed_save_are_ignored_and_swept(tmp_path):
    leftover = tmp_path / ".writing-00000009-4711"
    leftover.mkdir(parents=True)
    (leftover / "model.pt").write_bytes(b"half")
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.newest() is None
    save(checkpoints, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_nothing_becomes_visible_when_the_disk_is_full(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 2)
    save(checkpoints, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.checkpoint.fsync_file", full)
    with pytest.raises(OSError, match="No space"):
        save(checkpoints, 2)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000001"]


def test_refuses_pickled_code(tmp_path):
    path = save(Checkpoints(tmp_path, 2), 1)
    torch.save({"weight": print}, path / "model.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    from training.files import sha256_of

    manifest["sha256"]["model.pt"] = sha256_of(path / "model.pt")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match="Weights only load failed"):
        Checkpoints(tmp_path, 2).load(1, torch.device("cpu"))
