"""Every file of training/configs: it loads, its comments are true, and it trains.

Where a preset names a model of the hub, a tiny one of the same architecture with random weights stands in for it, and a
few lines for its data, so that its own settings (tuning, precision, packing, format) are what is tried.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, ByT5Tokenizer, LlamaConfig, PretrainedConfig, Qwen3Config

from tests.unit.training.conftest import state_of
from training.config import Config, load
from training.models.memory import estimate, shape_of

ROOT = Path(__file__).parents[3]
PRESETS = {file.stem: file for file in sorted((ROOT / "training/configs").glob("*.yaml"))}
LLAMA_2_7B = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
)
LLAMA_3_1B = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    tie_word_embeddings=True,
)
QWEN3_8B = Qwen3Config(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
)
MODELS = {
    "llama2-7b-wikitext": LLAMA_2_7B,
    "llama2-7b-instructions": LLAMA_2_7B,
    "llama3-1b-full": LLAMA_3_1B,
    "qwen3-8b-chat": QWEN3_8B,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Starts each preset in a child of its own, so that torch is imported once for all of them.
DRIVER = """
import importlib, json, os, sys, traceback
from training import finetune, hello
for recipe, arguments in json.loads(sys.argv[1]):
    print("==", *arguments, flush=True)
    child = os.fork()
    if child == 0:
        sys.argv = [recipe, *arguments]
        try:
            importlib.import_module("training." + recipe).main()
        except SystemExit as end:
            os._exit(end.code or 0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        print("failed:", *arguments, flush=True)
"""


def rows_for(config: Config) -> list[dict[str, object]]:
    """Enough small rows of the preset's own fields."""
    texts = [f"{number} and {number * 7} " * (1 + number % 5) for number in range(40)]
    if config.data_format == "chat":
        roles = ("user", "assistant")
        turns = [[{"role": role, "content": text} for role in roles] for text in texts]
        return [{config.messages_field: messages} for messages in turns]
    if config.data_format == "text":
        return [{config.text_field: text} for text in texts]
    fields = (config.instruction_field, config.input_field, config.response_field)
    return [dict.fromkeys(fields, text) for text in texts]


def small(model: PretrainedConfig, directory: Path) -> str:
    """A tiny random model of the same architecture, with a tokenizer of bytes that knows chats."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 259}
    facts = {key: value for key, value in model.to_diff_dict().items() if key != "layer_types"}
    AutoModelForCausalLM.from_config(type(model)(**facts | sizes)).save_pretrained(directory)
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return str(directory)


def arguments_for(name: str, directory: Path) -> list[str]:
    """The command line of two steps of a preset on small data."""
    config, overrides = load(PRESETS[name]), ["steps=2", "save_every=2", "log_every=1"]
    if config.recipe == "finetune":
        kind = ".txt" if Path(config.data_train).suffix == ".txt" else ".jsonl"
        data = directory / f"{name}{kind}"
        rows = rows_for(config)
        data.write_text("some text\n" * 300 if kind == ".txt" else "".join(json.dumps(row) + "\n" for row in rows))
        overrides += [f"data_train={data}", "data_heldout=", "data_hub_config=", "data_split_heldout=", "seq_len=128"]
        overrides += [f"global_batch={4 * config.micro_batch}", "sample_tokens=4"]
    if name in MODELS:
        overrides.append(f"model={small(MODELS[name], directory / f'{name}-model')}")
    return ["--config", str(PRESETS[name]), "--job-dir", str(directory / name), *overrides]


@pytest.mark.timeout(600)
def test_every_preset_trains(tmp_path):
    torch.manual_seed(1)
    starts = [(load(file).recipe, arguments_for(name, tmp_path)) for name, file in PRESETS.items()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MINOS_NODE": "n1"}
    command = [sys.executable, "-c", DRIVER, json.dumps(starts)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "failed:" not in output, output
    for name, file in PRESETS.items():
        state = state_of(tmp_path / name)
        assert (state["state"], state["step"]) == ("done", 2), f"{name}: {state}\n{output}"
        if load(file).recipe == "finetune":
            assert state["heldout_last"] != state["heldout_first"], name


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_for_whom_it_is_and_what_it_needs(name):
    text, config = PRESETS[name].read_text(), load(PRESETS[name])
    assert text.startswith("# ")
    if "/" in config.model:
        assert name in MODELS
        assert "\n# Needs: a GPU with " in text
        assert ("HF_TOKEN" in text) == config.model.startswith("meta-llama/")
    told = re.search(r"batch (\d+) x accumulation (\d+) x (\d+) nodes", text)
    assert bool(told) == ("/" in config.model)
    if told:
        batch, accumulation, nodes = map(int, told.groups())
        assert (batch, batch * accumulation * nodes) == (config.micro_batch, config.global_batch)


@pytest.mark.parametrize("name", MODELS)
def test_the_memory_that_a_preset_names_is_the_estimate(name):
    text, config = PRESETS[name].read_text(), load(PRESETS[name])
    card, used = map(float, re.search(r"a GPU with (\d+) GB per process \(about ([\d.]+) GB are used", text).groups())
    needed = estimate(config, shape_of(MODELS[name])).total / 1e9
    assert used == pytest.approx(needed, abs=0.5)
    assert needed < card


def test_figures_of_the_issue():
    for name in ("llama2-7b-wikitext", "llama2-7b-instructions"):
        config = load(PRESETS[name])
        assert (config.lora_rank, config.lr, config.micro_batch, config.epochs) == (16, 2e-4, 1, 3)
        assert config.global_batch == 1 * 8 * 3
        assert config.tuning == "qlora"
