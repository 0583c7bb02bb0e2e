"""How much memory a run will take on one card, known from the model's config.json before a single weight is loaded.

With DDP every card holds everything, so the estimate is the same for all; each rank compares it with its own card.
What stays between steps follows from counting parameters and is exact:

    weights     full: 4 bytes (fp32). lora: 2 in bf16, 4 in fp32, adapters 4. qlora: 0.516 for the weights in 4 bits
                (one 8-bit scale for 64 of them and one 32-bit scale for 256 scales: QLoRA, arXiv 2305.14314,
                section 3), the rest as in lora
    gradients   4 bytes for each trained parameter (DDP's buckets are the gradients themselves)
    optimizer   8 bytes for each trained parameter: AdamW's two moments in fp32

What a step adds is what autograd keeps from the forward pass, and the larger of two things that pass: the loss, or the
gradients on their way back through one block (whose activations are computed again with gradient_checkpointing).
Counted for each token in the manner of Korthikanti et al. (arXiv 2205.05198, section 4.1), for a gated block whose
attention keeps no matrix of scores:

    norms       the input of each in fp32, and its normalised form where the norm is trained
    inputs      of the linear layers: two in fp32, five in bf16 (autocast makes a copy for each layer that reads one)
    attention   query, key, value and result
    mlp         both inner activations, the activated one and the product

The loss (loss.py) takes the output layer in pieces: their scores over the vocabulary, the gradient of the hidden
states, and that of the output layer's weights where they are trained.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from training.config import Config
from training.models.errors import ModelError
from training.models.loss import CUDA_LOGITS, CUDA_LOGITS_TRAINED, PIECE

FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes of one weight with its share of the scales
LIBRARIES = 800_000_000  # CUDA context, kernels, communication buffers; on CPUs Python and its libraries
FRAGMENTS = 0.03  # of the rest: what the allocator cannot give out again
SHORTEST = 128  # tokens: shorter rows are not proposed


@dataclasses.dataclass(kw_only=True, frozen=True)
class Estimate:
    """Bytes on one card at the worst moment of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    reserve: int

    @property
    def total(self) -> int:
        return sum(dataclasses.asdict(self).values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in dataclasses.asdict(self).items())
        return f"{self.total / 1e9:.1f} GB ({parts})"


@dataclasses.dataclass(kw_only=True, frozen=True)
class Shape:
    """What the estimate has to know of a model: numbers of parameters and widths."""

    parameters: int
    linear: dict[str, tuple[int, int]]
    """Width in and out of each linear layer of the decoder blocks, by name."""
    head: int
    """Parameters of the output layer; they are among `parameters` whether or not the embedding shares them."""
    vocabulary: int
    layers: int
    normed: int
    """Widths of what all norms of the model are given, together."""
    hidden: int
    queries: int
    keys: int
    inner: int

    def adapted(self, config: Config) -> list[tuple[int, int]]:
        """Widths of the layers that get an adapter."""
        names = {name.strip() for name in config.lora_targets.split(",")}
        if "all-linear" in names:
            return list(self.linear.values())
        return [widths for name, widths in self.linear.items() if names & {name, name.rpartition(".")[2]}]


def shape_of(model_config: PretrainedConfig) -> Shape:
    """Count on a model without memory (meta tensors): a second for 8 billion parameters."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    head, text = model.get_output_embeddings(), model_config.get_text_config()
    linear = {
        name: tuple(module.weight.shape) if isinstance(module, Conv1D) else tuple(reversed(module.weight.shape))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * text.hidden_size
    widths = {"q_norm": heads * width, "k_norm": groups * width}  # others are given the hidden states
    norms = [
        name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__.endswith("Norm")
    ]
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linear=linear,
        head=head.weight.numel(),
        vocabulary=text.vocab_size,
        layers=text.num_hidden_layers,
        normed=sum(widths.get(name, text.hidden_size) for name in norms),
        hidden=text.hidden_size,
        queries=heads * width,
        keys=groups * width,
        inner=inner * (getattr(text, "num_experts_per_tok", None) or 1),
    )


def estimate(config: Config, shape: Shape) -> Estimate:
    """Bytes that a step of `config` takes; see the head of this file."""
    half, tokens = config.precision == "bf16", config.micro_batch * config.seq_len
    base, full = 2 if half else 4, config.tuning == "full"
    in_blocks = sum(wide * out for wide, out in shape.linear.values())
    adapters = sum(config.lora_rank * (wide + out) for wide, out in shape.adapted(config))
    trained = shape.parameters if full else adapters
    if full:
        weights = 4 * shape.parameters
    elif config.tuning == "lora":
        weights = base * shape.parameters + 4 * adapters
    else:
        weights = FOUR_BITS * in_blocks + base * (shape.parameters - in_blocks) + 4 * adapters
    kept = tokens * shape.hidden * (4 if full else base) * shape.layers  # what enters each block
    passing = tokens * base * (3 * shape.inner + 2 * shape.hidden)
    copies = 2 * in_blocks if full and half else 0  # autocast's of the weights
    if config.gradient_checkpointing:
        passing += tokens * _of_block(config, shape)
    else:
        kept = tokens * shape.layers * _of_block(config, shape) + copies
    if config.tuning == "qlora":  # the largest layer in 16 or 32 bits, for its product and for its gradient's
        passing += 2 * base * max((wide * out for wide, out in shape.linear.values()), default=0)
    if config.attention == "mask":
        kept += base * tokens**2
    loss_kept, loss_passing = _loss(config, shape)
    loss = loss_kept + max(0, loss_passing - passing, copies - passing if config.gradient_checkpointing else 0)
    taken = weights + 12 * trained + kept + passing + loss
    return Estimate(
        weights=int(weights),
        gradients=4 * trained,
        optimizer=8 * trained,
        activations=int(kept + passing),
        loss=int(loss),
        reserve=int(LIBRARIES + FRAGMENTS * taken),
    )


def _loss(config: Config, shape: Shape) -> tuple[int, int]:
    """Bytes that the loss keeps until the backward pass, and those that it needs in passing, on a GPU."""
    half, trained, tokens = config.precision == "bf16", config.tuning == "full", config.micro_batch * config.seq_len
    budget = CUDA_LOGITS_TRAINED if trained else CUDA_LOGITS
    rows = min(max(budget // shape.vocabulary, PIECE[0]), PIECE[1], tokens)
    size = 4 if trained or not half else 2
    kept = 2 * size * tokens * shape.hidden + (4 * shape.head if trained else 0)
    passing = rows * shape.vocabulary * (6 if half else 4)
    if half:  # hidden states, their gradient and the weights in bf16, the gradient of the weights of a piece
        passing += 4 * tokens * shape.hidden + (4 * shape.head if trained else 0)
    return kept, passing


def _of_block(config: Config, shape: Shape) -> float:
    """Bytes that autograd keeps of one block for each token."""
    size, full, half = 2 if config.precision == "bf16" else 4, config.tuning == "full", config.precision == "bf16"
    norms = shape.normed / shape.layers * (8 if full else 4)
    inputs = size * shape.hidden * (5 if half else 2)
    attention = 2 * size * (shape.queries + shape.keys)
    mlp = 4 * size * shape.inner
    if full:
        return norms + inputs + attention + mlp
    ranks = size * config.lora_rank * len(shape.adapted(config)) / shape.layers
    return norms + inputs + attention + mlp + ranks + (size * shape.queries if half else 0)


def refuse_too_large(config: Config, device: torch.device, processes: int) -> Estimate | None:
    """Before `load_model`: ModelError where the model cannot fit on `device`, with `processes` on this machine.

    Returns the estimate; None for a scratch model, which is as small as its settings say, and for one whose config
    cannot be read, which `load_model` explains.
    """
    if config.model == "scratch":
        return None
    try:
        model_config = AutoConfig.from_pretrained(config.model, trust_remote_code=False)
        shape_of(model_config)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return check(config, model_config, *memory_of(device, processes))


def check(config: Config, model_config: PretrainedConfig, memory: int, device: str) -> Estimate:
    """The estimate, or ModelError when it does not fit into `memory` bytes of the card or machine named `device`.

    The message names the numbers and the smallest change that fits: those that change no result come first
    (micro_batch), then those that cost time, precision, the way of tuning, and the length of rows.
    """
    shape = shape_of(model_config)
    needed = estimate(config, shape)
    if needed.total <= memory:
        return needed
    problem = f"model: {config.model} with tuning {config.tuning} needs about {needed}"
    for changed in _smaller(config):
        smaller = estimate(dataclasses.replace(config, **changed), shape)
        if smaller.total <= memory:
            settings = " ".join(f"{key}={str(value).lower()}" for key, value in changed.items())
            fix = f"write {settings} (about {smaller.total / 1e9:.1f} GB)"
            break
    else:
        fix = "no setting makes it fit: choose a smaller model"
    raise ModelError(f"{problem}, {device} has {memory / 1e9:.1f} GB; {fix}")


def _smaller(config: Config) -> Iterator[dict[str, object]]:
    """Changes of settings that take less memory, the least harmful first."""
    ways = ("full", "lora", "qlora")
    lengths = [config.seq_len]
    while lengths[-1] // 2 >= SHORTEST:
        lengths.append(lengths[-1] // 2)
    choices = {
        "seq_len": lengths,
        "tuning": ways[ways.index(config.tuning) :],
        "precision": [config.precision, "bf16"] if config.precision == "fp32" else ["bf16"],
        "gradient_checkpointing": [False, True] if not config.gradient_checkpointing else [True],
        "micro_batch": [rows for rows in range(config.micro_batch, 0, -1) if config.micro_batch % rows == 0],
    }
    for values in itertools.product(*choices.values()):  # the last varies fastest
        changed = dict(zip(choices, values, strict=True))
        changed = {key: value for key, value in changed.items() if value != getattr(config, key)}
        if changed:
            yield changed


def memory_of(device: torch.device, processes: int) -> tuple[int, str]:
    """(bytes, name) of the card `device`; for the CPU this process's part when `processes` share the machine."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return card.total_memory, card.name
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    total = next(1024 * int(words[1]) for words in lines if words[0] == "MemTotal:")
    part = f" for each of {processes} processes" if processes > 1 else ""
    return total // processes, f"this machine{part}"
