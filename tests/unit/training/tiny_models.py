"""Tiny causal language models of several families, and rows of documents for them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from training.data.batch import IGNORED
from training.settings import Config

torch.set_num_threads(1)
VOCABULARY = 259  # that of the `bytes` tokenizer
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
OF_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
FAMILIES = {
    "llama": (transformers.LlamaConfig, GROUPED),
    "qwen2": (transformers.Qwen2Config, GROUPED),
    "qwen3": (transformers.Qwen3Config, GROUPED | {"head_dim": 8}),
    "mistral": (transformers.MistralConfig, GROUPED | {"sliding_window": None}),
    "mistral with a window": (transformers.MistralConfig, GROUPED | {"sliding_window": 16}),
    "gemma": (transformers.GemmaConfig, GROUPED | {"head_dim": 8}),
    "gemma2": (transformers.Gemma2Config, GROUPED | {"head_dim": 8, "sliding_window": 16}),
    "granite": (transformers.GraniteConfig, GROUPED | {"logits_scaling": 3.0}),
    "cohere": (transformers.CohereConfig, GROUPED),
    "gpt2": (transformers.GPT2Config, OF_GPT2 | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt-neox": (transformers.GPTNeoXConfig, SIZES | {"bos_token_id": 1, "eos_token_id": 1}),
    "phi": (transformers.PhiConfig, SIZES | {"bos_token_id": 1, "eos_token_id": 1}),
    "mixtral": (transformers.MixtralConfig, GROUPED | {"num_local_experts": 4}),
    "falcon": (
        transformers.FalconConfig,
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"bos_token_id": 1, "eos_token_id": 1},
    ),
}
LENGTHS = (5, 1, 20, 9)


def config(**settings: object) -> Config:
    """A valid config for a tiny model."""
    return Config(**{"data_train": "none.txt", "seq_len": 64, "sample_tokens": 8, "model": "tiny"} | settings)


def scratch(**settings: object) -> Config:
    """A valid config of a tiny model from scratch."""
    sizes = {"scratch_hidden": 64, "scratch_layers": 2, "scratch_heads": 2, "scratch_mlp": 96}
    return config(**{"model": "scratch"} | sizes | settings)


def build(family: str) -> transformers.PreTrainedModel:
    """A model of that family, the same at each call."""
    kind, sizes = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(kind(**sizes))
        for parameter in model.parameters():  # zero biases and unit norms would hide what is done with them
            parameter.data += 0.1 * torch.randn_like(parameter)
        return model


def save(family: str, directory: Path) -> Path:
    """The same model as a Hugging Face directory with a byte tokenizer."""
    build(family).save_pretrained(directory)
    transformers.ByT5Tokenizer(extra_ids=0).save_pretrained(directory)
    return directory


def row(lengths: tuple[int, ...] = LENGTHS, seed: int = 0, counted: bool = True) -> tuple:
    """(tokens, labels, positions, bounds, longest) of random documents; every third label does not count."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    tokens, labels = torch.randint(3, VOCABULARY, (2, 1, total), generator=generator)
    labels[0, ::3] = IGNORED
    if not counted:
        labels[:] = IGNORED
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return tokens, labels, positions, torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32), max(lengths)
