"""Weights that differ between nodes have different names."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from tests.unit.training.tiny_models import save
from training.models import ModelError, architecture_of, identity_of
from training.models.identity import SAMPLE, SAMPLES


@pytest.fixture
def model(tmp_path):
    return save("llama", tmp_path / "model")


def test_a_copy_has_the_same_and_a_changed_weight_another(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    assert identity_of(str(copy)) == identity_of(str(model))
    file = copy / "model.safetensors"
    size = file.stat().st_size
    with safe_open(file, framework="pt") as opened:
        names, metadata = opened.keys(), opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in names}
    for tensor in tensors.values():
        tensor *= 1.001  # as after some more training
    save_file(tensors, file, metadata)
    assert file.stat().st_size == size, "only the content differs"
    assert identity_of(str(copy)) != identity_of(str(model))


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_the_sample_is_taken_from_all_of_the_file(place, tmp_path):
    """The first, the middle and the last piece of a file that is ten times what is read of it."""
    size = 10 * SAMPLES * SAMPLE
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(size))
    before = identity_of(str(tmp_path))
    with file.open("r+b") as stream:
        stream.seek(int(place * (size - 10 * SAMPLE)))  # as long as from one piece to the next
        stream.write(b"x" * 10 * SAMPLE)
    assert file.stat().st_size == size
    assert identity_of(str(tmp_path)) != before


def test_what_has_a_manifest_goes_by_it(model):
    manifest = {"name": "org/name", "commit": "c", "files": {"model.safetensors": {"size": 1, "sha256": "ab"}}}
    identities = set()
    for sha256, changed in (("ab", 1), ("ab", 2), ("cd", 2)):
        manifest["files"]["model.safetensors"] |= {"sha256": sha256, "changed_ns": changed}
        (model / "manifest.json").write_text(json.dumps(manifest))
        identities.add(identity_of(str(model)))
    assert len(identities) == 2  # the time of a copy says nothing
    (model / "manifest.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot be read \(.*\); fetch it again"):
        identity_of(str(model))


def test_weights_that_are_used_otherwise_are_seen(model, tmp_path):
    """The same file under another config.json computes another function, whose gradients would be averaged in."""
    copy = shutil.copytree(model, tmp_path / "copy")
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | {"transformers_version": "0", "_name_or_path": "elsewhere"}))
    assert architecture_of(str(copy)) == architecture_of(str(model)) != ""
    (copy / "config.json").write_text(json.dumps(content | {"rope_theta": 500.0}))
    assert architecture_of(str(copy)) != architecture_of(str(model))
    assert identity_of(str(copy)) == identity_of(str(model)), "checkpoints outlive it"
    (copy / "config.json").write_text("[")
    with pytest.raises(ModelError, match=r"config\.json cannot be read \(.*\); fetch it again"):
        architecture_of(str(copy))
    assert architecture_of("scratch") == architecture_of("org/name") == ""


def test_names_stand_for_themselves():
    assert identity_of("scratch") == "scratch"
    assert identity_of("org/name") == "org/name"
