"""The model and its tokenizer: a small Llama from scratch, a local Hugging Face directory or a hub id."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from training.config import Config
from training.data import IGNORED, key_of

transformers.logging.disable_progress_bar()  # bars of every rank would interleave in the log


class ModelError(ValueError):
    """A model or tokenizer that cannot be loaded; one line with the key and the fix."""


def load_tokenizer(config: Config):
    """The tokenizer of `config`; `bytes` is ByT5's: one token per UTF-8 byte plus pad, end and unknown, 259
    in all.

    Errors: ModelError.
    """
    name = config.tokenizer or ("bytes" if config.model == "scratch" else config.model)
    if name == "bytes":
        return ByT5Tokenizer(extra_ids=0)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"tokenizer: {name} cannot be loaded ({_first_line(error)}); "
            "give a Hugging Face directory, a hub id or bytes"
        ) from None
    if tokenizer.eos_token_id is None:
        raise ModelError(f"tokenizer: {name} has no end-of-text token; choose one that has")
    return tokenizer


def padding_token(tokenizer) -> int:
    """The token to fill rows with; many pretrained tokenizers have none, and padding counts nowhere, so
    end-of-text.
    """
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def load_model(config: Config, tokenizer) -> nn.Module:
    """A causal language model in fp32, in train mode, on the CPU.

    From scratch the weights are a pure function of the config, so all ranks start alike. Errors: ModelError.
    """
    if config.model == "scratch":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key_of(config.seed, "weights"))
            return LlamaForCausalLM(_scratch_config(config, tokenizer)).train()
    try:
        return AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32).train()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model: {config.model} cannot be loaded ({_first_line(error)}); "
            "give a Hugging Face directory, a hub id or scratch"
        ) from None


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


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


class SummedLoss(nn.Module):
    """The model with its loss inside, so that DDP sees one forward for both.

    `forward(tokens, labels)`, both int64 of shape (rows, length), gives the SUM of the cross-entropy over the
    labels that count, a float32 scalar. Sums of micro-batches and ranks add up exactly as one big batch
    would; means do not.
    """

    def __init__(self, model: nn.Module, precision: str):
        super().__init__()
        self.model = model
        self.bf16 = precision == "bf16"

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.model(input_ids=tokens, use_cache=False).logits
        return functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            labels[:, 1:].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )


@torch.no_grad()
def generate(model: nn.Module, tokenizer, prompt: list[int], length: int) -> str:
    """Text of `prompt` (token numbers) and its greedy continuation by at most `length` tokens."""
    tokens = torch.tensor([prompt], device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    output = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=padding_token(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
    )
    model.train(was_training)
    return tokenizer.decode(output[0], skip_special_tokens=True)


def export(model: nn.Module, tokenizer, directory: Path) -> None:
    """Write model and tokenizer where `from_pretrained(directory)` finds them; a former export is replaced
    whole.
    """
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    for file in temporary.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner only; a result in a shared directory is for all to read
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)
