"""Which attention keeps the documents of a row apart here: compared on the model itself before the first step.

What a kernel does on this card, or a model with its arguments, is not taken on trust. A row of three tiny
documents goes through the whole model: it must give what each document gives alone, and other words in the first
must change nothing in the others. A kernel must besides agree with masked attention on the model's own queries,
keys and values, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from training.models.attention import KERNELS, outputs, set_way
from training.models.errors import ModelError, first_line
from training.settings import Config

LENGTHS = (9, 1, 14)  # tokens of the three documents
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}  # between rows of different lengths, as share of the norm
LEAK = {"fp32": 1e-5, "bf16": 2e-3}  # between rows of equal lengths, where even rounding is the same
DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout")  # what model configs call it; seen in training only


@torch.no_grad()
def settle(model: PreTrainedModel, config: Config) -> str:
    """Set `model`, a causal language model on its device, to the way that suits it best; returns its name.

    Errors: ModelError when the wanted way does not pass, or when the model is not causal.
    """
    device, was_training, tolerance = model.device, model.training, TOLERANCE[config.precision]
    ways = [config.attention]
    if config.attention == "auto":
        on_cuda = ["varlen"] if config.precision == "bf16" else []
        ways = [*(on_cuda if device.type == "cuda" else ["documents"]), "mask", "alone"]
    model.eval()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        set_way(model, "alone")
        row = _test_row(model)
        expected = outputs(model.get_decoder(), "last_hidden_state", "alone", *row)
        shorter = row[0][:, : LENGTHS[0] - 1]
        found = model.get_decoder()(input_ids=shorter, use_cache=False).last_hidden_state
        if _deviation(found, expected[:, : shorter.shape[1]]) > tolerance:
            raise ModelError(f"model: {config.model} is not a causal language model; its places see what follows them")
        for way in ways:
            set_way(model, way)
            reason = "" if way == "alone" else _reason_against(way, model, config, row, expected)
            if not reason:
                break
            if config.attention != "auto":
                raise ModelError(f"attention: {way} cannot be used with this model here ({reason}); write auto")
            print(f"attention: {way} is not used ({reason})", flush=True)
    model.train(was_training)
    return way


def _test_row(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """(tokens, positions, bounds, longest) of documents of LENGTHS tokens."""
    tokens = (torch.arange(sum(LENGTHS)) * 31 + 7) % model.get_input_embeddings().weight.shape[0]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0, dtype=torch.int32)
    return *(tensor.to(model.device) for tensor in (tokens[None], positions[None], bounds)), max(LENGTHS)


def _reason_against(way: str, model: PreTrainedModel, config: Config, row: tuple, expected: torch.Tensor) -> str:
    """Why `way` does not keep documents apart in this model as it should; empty when it does."""
    tokens, *rest = row
    first, deviations = LENGTHS[0], []
    other = torch.cat([tokens[:, :first].flip(1), tokens[:, first:]], dim=1)
    try:
        if way in KERNELS:
            settings = model.config.get_text_config()
            _refuse_window(getattr(settings, "attention_chunk_size", None), config.seq_len)
            if way == "varlen" and any(getattr(settings, name, 0) for name in DROPOUTS):
                raise ValueError("this model has dropout in its attention, the kernel has none")
            AttentionInterface.register("minos_compared", _compared(KERNELS[way], deviations, config.seq_len))
            model.set_attn_implementation("minos_compared")
        found = outputs(model.get_decoder(), "last_hidden_state", way, *row)
        changed = outputs(model.get_decoder(), "last_hidden_state", way, other, *rest)
    except (RuntimeError, ValueError, TypeError) as error:
        return first_line(error)
    finally:
        set_way(model, way)
    if way in KERNELS and not deviations:
        return "this model does not take the attention that it is given"
    if way in KERNELS and not max(deviations) <= TOLERANCE[config.precision]:
        return f"it differs from masked attention by {max(deviations):.1e} of its size"
    if not _deviation(changed[:, first:], found[:, first:]) <= LEAK[config.precision]:
        return "documents of a row see each other in this model"
    if not _deviation(found, expected) <= TOLERANCE[config.precision]:
        return f"documents in a row differ from documents alone by {_deviation(found, expected):.1e} of their size"
    return ""


def _compared(kernel: Callable, deviations: list[float], seq_len: int) -> Callable:
    """An attention that does what `kernel` does and notes how far it is from masked attention each time."""

    def attention(module, query, key, value, mask, *, cu_seq_lens_q, sliding_window=None, **others):
        _refuse_window(sliding_window, seq_len)
        results = []
        for function in (kernel, _masked):
            inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
            with torch.enable_grad():
                output = function(module, *inputs, None, cu_seq_lens_q=cu_seq_lens_q, **others)[0]
                results.append([output.detach(), *torch.autograd.grad(output.float().square().sum(), inputs)])
        deviations.extend(_deviation(found, expected) for found, expected in zip(*results, strict=True))
        return results[0][0], None

    return attention


def _masked(module, query, key, value, mask, *, cu_seq_lens_q, scaling=None, **others):
    """The plainest way to keep documents apart: attention under a mask of all pairs of places."""
    places = torch.arange(query.shape[2], device=query.device)
    document = torch.bucketize(places, cu_seq_lens_q.to(query.device), right=True)
    mask = (document[:, None] == document) & (places[:, None] >= places)
    grouped = query.shape[1] != key.shape[1]
    output = functional.scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=grouped)
    return output.transpose(1, 2), None


def _refuse_window(window: int | None, seq_len: int) -> None:
    if window is not None and window < seq_len:
        raise ValueError(f"a layer of this model sees {window} tokens, less than seq_len ({seq_len})")


def _deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())
