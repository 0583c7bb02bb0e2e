"""Weights that differ between nodes have different names."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.unit.training.tiny_models import save
from training.models import ModelError, identity_of


@pytest.fixture
def model(tmp_path):
    return save("llama", tmp_path / "model")


def test_a_copy_has_the_same_and_a_changed_weight_another(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    assert identity_of(str(copy)) == identity_of(str(model))
    file = copy / "model.safetensors"
    tensors = load_file(file)
    for tensor in tensors.values():
        tensor *= 1.001  # as after some more training
    save_file(tensors, file)
    assert identity_of(str(copy)) != identity_of(str(model))
    with safe_open(file, framework="pt") as opened:
        assert opened.keys()


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


def test_names_stand_for_themselves():
    assert identity_of("scratch") == "scratch"
    assert identity_of("org/name") == "org/name"
