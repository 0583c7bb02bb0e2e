"""What a run leaves behind can be loaded again by anybody with transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.unit.training.test_adapters import load, train
from tests.unit.training.tiny_models import config, row, save, scratch
from training.models import export, generate, load_tokenizer
from training.models.adapters import causal_model
from training.models.attention import own_attention

CARD = {"steps": 30, "held-out loss at the end": 1.23456789, "data": "a|b\nc"}


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    causal = causal_model(model)
    with own_attention(causal), torch.no_grad():
        return causal(input_ids=row()[0], use_cache=False).logits


def exported(settings, directory: Path) -> tuple[torch.nn.Module, torch.Tensor]:
    """Train a little and export; returns the model and its logits before the export."""
    model = load(settings)
    train(model, settings, 3)
    logits = logits_of(model)
    before = os.umask(0o077)
    try:
        export(model, load_tokenizer(settings), directory, CARD)
    finally:
        os.umask(before)
    return model, logits


@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
@pytest.mark.parametrize("origin", ["scratch", "directory"])
def test_exported_model_loads_again(origin, tuning, tmp_path):
    base = save("llama", tmp_path / "base")
    settings = scratch(tuning=tuning) if origin == "scratch" else config(model=str(base), tuning=tuning)
    directory = tmp_path / "job/model"
    model, logits = exported(settings, directory)
    # 4-bit weights of a directory come back as they are there, in full, unless one asks for 4 bits.
    named = {"quantization_config": causal_model(model).config.quantization_config} if tuning == "qlora" else {}
    again = AutoModelForCausalLM.from_pretrained(directory, **(named if origin == "directory" else {}))
    again.train()  # in bitsandbytes evaluation takes other roundings on some CPUs
    assert torch.equal(logits_of(again), logits)
    assert torch.equal(logits_of(model), logits)
    assert (directory / "base/config.json").exists() == (origin == "scratch" and tuning != "full")
    assert AutoTokenizer.from_pretrained(directory)("ab").input_ids == [100, 101, 1]
    others = [path for path in (directory, *directory.rglob("*")) if path.stat().st_mode & 0o044 != 0o044]
    assert others == []
    assert [path.name for path in directory.parent.iterdir()] == ["model"]


def test_card(tmp_path):
    exported(config(model=str(save("llama", tmp_path / "base")), tuning="qlora"), tmp_path / "job/model")
    text = (tmp_path / "job/model/README.md").read_text()
    assert text.startswith("---\nlibrary_name: peft\n")
    assert "# job\n" in text
    assert f"LoRA adapters for `{tmp_path}/base`, which is needed beside them." in text
    assert f'AutoModelForCausalLM.from_pretrained("{tmp_path}/job/model")' in text
    assert "| held-out loss at the end | 1.235 |\n| data | a\\|b c |" in text
    assert "The base was held in 4 bits" in text


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_model_of_the_hub_is_named_as_it_is_there_and_not_after_the_copy(tuning, tmp_path):
    settings = config(model=str(save("llama", tmp_path / "models/org--name")), tuning=tuning)
    export(load(settings), load_tokenizer(settings), tmp_path / "job/model", CARD, "org/name")
    text = (tmp_path / "job/model/README.md").read_text()
    assert "\nbase_model: org/name\n" in text and "`org/name`" in text
    named = "".join(file.read_text() for file in (tmp_path / "job/model").glob("*.json"))
    assert "models/org--name" not in named + text
    if tuning == "lora":
        assert (
            json.loads((tmp_path / "job/model/adapter_config.json").read_text())["base_model_name_or_path"]
            == "org/name"
        )


def test_export_replaces_the_former_one_whole(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/old").touch()
    exported(scratch(), tmp_path / "model")
    assert not (tmp_path / "model/old").exists()
    assert (tmp_path / "model/model.safetensors").exists()


def test_sampling_advice_without_sampling_does_not_spoil_the_end(tmp_path):
    model = load(scratch())
    model.generation_config.temperature = 0.9  # as Llama 2 has it
    export(model, load_tokenizer(scratch()), tmp_path / "model", {})
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").generation_config.temperature is None


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_sample(tuning, tmp_path):
    settings = config(model=str(save("gpt2", tmp_path)), tuning=tuning)
    model, tokenizer = load(settings), load_tokenizer(settings)
    prompt = tokenizer("To be", add_special_tokens=False).input_ids
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=1
    )
    assert generate(model, tokenizer, prompt, 12) == tokenizer.decode(plain[0], skip_special_tokens=True)
    assert model.training
    assert model.minos_way == "documents" and causal_model(model).config._attn_implementation == "minos_documents"
    assert generate(model, tokenizer, [], 3) is not None
    long = generate(model, tokenizer, prompt * 40, 12)  # 200 tokens for 128 positions
    assert 0 < len(long) < 128 + 12
