"""The model and its tokenizer, ready to train: from scratch, a Hugging Face directory or the hub."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from training.data.order import key_of
from training.models.adapters import freeze_others, quiet_bitsandbytes, with_adapters
from training.models.attention_choice import settle
from training.models.errors import ModelError, cannot_load
from training.settings import Config

transformers.logging.disable_progress_bar()  # bars of every rank would interleave in the log
FAILURES = (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError, SafetensorError)


def load_tokenizer(config: Config):
    """The tokenizer of `config`; `bytes` is ByT5's: one token per UTF-8 byte plus pad, end and unknown, 259
    in all.

    Errors: ModelError.
    """
    name = config.tokenizer or ("bytes" if config.model == "scratch" else config.model)
    if name == "bytes":
        return ByT5Tokenizer(extra_ids=0)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except FAILURES as error:
        raise cannot_load("tokenizer", name, "bytes", error) from None
    if tokenizer.eos_token_id is None:
        raise ModelError(f"tokenizer: {name} has no end-of-text token; choose one that has")
    return tokenizer


def padding_token(tokenizer) -> int:
    """A token for places that count nowhere; many pretrained tokenizers have none, so end-of-text."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def load_model(
    config: Config, tokenizer, device: torch.device, *, highest: Callable[[], int] | None = None
) -> nn.Module:
    """A causal language model on `device`, in train mode, with everything that `config` wants of it.

    `highest` says which token of the data is the highest; it is asked where the tokenizer has more than the model.

    What is trained is fp32 and alone has requires_grad: all weights, or the adapters beside a frozen base (bf16
    or fp32 as `precision` says; 4 bits for qlora). All ranks get the same values. Errors: ModelError.
    """
    model = _scratch(config, tokenizer, device) if config.model == "scratch" else _pretrained(config, device)
    _check_fits(config, tokenizer, model, highest)
    freeze_others(model)
    if config.tuning == "qlora":
        _keep_layout(model)
    settle(model, config)
    if config.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ModelError(f"gradient_checkpointing: {config.model} cannot do it; write false")
        model.gradient_checkpointing_enable({"use_reentrant": False})
    blocks = _blocks(model)
    if config.tuning != "full":
        model = with_adapters(model, config)
    if config.compile:
        for block in blocks:
            block.compile()
    return model.train()


def _scratch(config: Config, tokenizer, device: torch.device) -> PreTrainedModel:
    """A small Llama whose weights are a pure function of the config, whatever the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_of(config.seed, "weights"))
        model = LlamaForCausalLM(_scratch_config(config, tokenizer))
    if config.tuning == "qlora":  # weights become 4 bits only while they are read from files
        with tempfile.TemporaryDirectory() as directory:
            model.save_pretrained(directory)
            model = AutoModelForCausalLM.from_pretrained(directory, **_kind(config, device))
        model.name_or_path = model.config.name_or_path = ""
        return model
    return model.to(device, dtype=_base_dtype(config))


def _scratch_config(config: Config, tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.scratch_hidden,
        intermediate_size=config.scratch_mlp,
        num_hidden_layers=config.scratch_layers,
        num_attention_heads=config.scratch_heads,
        max_position_embeddings=config.seq_len + config.sample_tokens,
        attention_dropout=config.dropout,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=padding_token(tokenizer),
    )


def _refuse_quantised(config: Config) -> None:
    """A model whose weights are few bits already: only adapters beside 4-bit ones of bitsandbytes can be trained."""
    try:
        quantised = getattr(
            AutoConfig.from_pretrained(config.model, trust_remote_code=False), "quantization_config", None
        )
    except FAILURES:
        return  # loading it says what is wrong
    if not quantised:
        return
    facts = quantised if isinstance(quantised, dict) else quantised.to_dict()
    four_bits = facts.get("load_in_4bit") or facts.get("_load_in_4bit")
    if config.tuning == "full" or not four_bits:
        fix = "the model that it was made from" if not four_bits else "tuning=qlora, or the model that it was made from"
        method = str(facts.get("quant_method", "unknown")).rpartition(".")[2].lower()
        raise ModelError(
            f"model: {config.model} is quantised ({method}), and its weights cannot be trained; write {fix}"
        )


def _pretrained(config: Config, device: torch.device) -> PreTrainedModel:
    _refuse_quantised(config)
    if (Path(config.model) / "adapter_config.json").exists():
        raise ModelError(f"model: {config.model} holds an adapter, not a model; write its base, or merge them first")
    try:
        with _quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                config.model, trust_remote_code=False, output_loading_info=True, **_kind(config, device)
            )
    except FAILURES as error:
        raise cannot_load("model", config.model, "scratch", error) from None
    if report["missing_keys"]:
        first = min(report["missing_keys"])
        raise ModelError(
            f"model: {config.model} lacks weights of a causal language model ({len(report['missing_keys'])} in all, "
            f"such as {first}); choose a causal language model, or download it again"
        )
    return model.to(device) if config.tuning != "qlora" else model


def _base_dtype(config: Config) -> torch.dtype:
    return torch.bfloat16 if config.tuning != "full" and config.precision == "bf16" else torch.float32


def _kind(config: Config, device: torch.device) -> dict[str, object]:
    """How `from_pretrained` shall make the weights: their kind of numbers and where."""
    kind: dict[str, object] = {"dtype": _base_dtype(config), "use_safetensors": True}
    if device.type == "cuda":
        kind["device_map"] = {"": device}  # read straight onto the GPU; "auto" would spread it over all GPUs
    if config.tuning == "qlora":
        quiet_bitsandbytes()
        kind["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=_base_dtype(config),
        )
    return kind


def _keep_layout(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from rearranging 4-bit weights on some CPUs at the first evaluation: what it makes of them
    there has no gradient, and training would go on without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_fits(config: Config, tokenizer, model: PreTrainedModel, used: Callable[[], int] | None) -> None:
    places = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if places and config.seq_len > places:
        raise ModelError(
            f"seq_len: {config.seq_len} is more than the {places} positions of {config.model}; write {places}"
        )
    known = model.get_input_embeddings().weight.shape[0]
    vocabulary = tokenizer.get_vocab()
    highest = max(number for token, number in vocabulary.items() if token != tokenizer.pad_token)
    # Some models' own tokenizers have marks for what the model cannot see, such as images; no text has them.
    if highest >= known and (used is None or used() >= known):
        fix = "leave the key out to take the model's own" if config.tokenizer else "choose data without such tokens"
        raise ModelError(f"tokenizer: its highest token is {highest}, but {config.model} knows {known} tokens; {fix}")


def _blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's blocks, one behind the other."""
    count = model.config.get_text_config().num_hidden_layers
    lists = (module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList))
    return next((blocks for blocks in lists if len(blocks) == count), nn.ModuleList())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within, transformers prints no tables of the weights it has read; what is wrong with them we say ourselves."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
