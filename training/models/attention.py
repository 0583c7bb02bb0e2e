"""Documents of a flat row do not see each other: the ways to keep them apart in a decoder.

A micro-batch is one row of T tokens, document after document. Four ways lead it through a decoder:

- `documents`: one causal attention call for each document; costs the sum of their squares, builds no mask.
- `varlen`: one FlashAttention call for all of them, by their bounds; CUDA, 16-bit numbers.
- `mask`: the model's own attention under a block mask, which transformers builds once per forward where
  positions start again; knows sliding windows, soft caps and sinks, costs T squared.
- `alone`: one forward for each document; for models in which documents would see each other in every other
  way, such as those with a convolution or a recurrent state.

The first two are registered with transformers, whose models hand them query, key and value. Which way a run
takes is settled in attention_choice.py, by comparing them on the model itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

UNKNOWN = ("softcap", "s_aux", "position_bias")  # what some models add to attention and ours would leave out


def _documents(module, query, key, value, mask, *, cu_seq_lens_q, dropout=0.0, scaling=None, **others):
    """One causal call for each document; query (1, heads, T, width), result (1, T, heads, width)."""
    _refuse_unknown(others)
    lengths = cu_seq_lens_q.diff().tolist()

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        grouped = query.shape[1] != key.shape[1]
        made = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=grouped
        )
        return made.transpose(1, 2)

    if len(set(lengths)) == 1:  # such as rows of plain text: a batch that needs no copies
        batch = (tensor[0].unflatten(1, (len(lengths), -1)).transpose(0, 1) for tensor in (query, key, value))
        return attention(*batch).flatten(0, 1)[None], None
    # split, not slices: the backward of each slice would fill a tensor as long as the row.
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([attention(*part) for part in parts], dim=1), None


def _varlen(module, query, key, value, mask, *, cu_seq_lens_q, max_length_q, dropout=0.0, scaling=None, **others):
    """One kernel call for all documents; shapes as in `_documents`."""
    _refuse_unknown(others)
    if dropout:
        raise ValueError("this kernel has no dropout")
    # Rotary positions come out in fp32; autocast, which turns them back for other attention, passes this one over.
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    query, key, value = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    bounds, grouped = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q), query.shape[1] != key.shape[1]
    causal = (-1, 0)  # any number of tokens back, none ahead
    output = varlen_attn(query, key, value, *bounds, scale=scaling, window_size=causal, enable_gqa=grouped)
    return output[None], None


def _refuse_unknown(arguments: dict[str, object]) -> None:
    for name in UNKNOWN:
        if arguments.get(name) is not None:
            raise ValueError(f"this model's attention has {name}")


KERNELS = {"documents": _documents, "varlen": _varlen}

# No mask function is registered beside them, so transformers builds no mask. Compiled blocks call `documents` as it
# is: its number of calls changes with every row.
AttentionInterface.register("minos_documents", torch.compiler.disable(_documents))
AttentionInterface.register("minos_varlen", _varlen)


def set_way(model: PreTrainedModel, way: str) -> None:
    """Let `model` use the attention that belongs to `way`."""
    if not hasattr(model, "minos_own_attention"):
        model.minos_own_attention = model.config._attn_implementation
    model.minos_way = way
    implementation = f"minos_{way}" if way in KERNELS else model.minos_own_attention
    if implementation != model.config._attn_implementation:  # models that cannot change it would only complain
        model.set_attn_implementation(implementation)


def way_of(model: nn.Module) -> str:
    """The way that `model`, with or without adapters around it, was set to; `mask` for any other model."""
    return getattr(model, "minos_way", "mask")


@contextlib.contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within, `model` uses the attention that it came with, as generating with a cache needs it."""
    way = way_of(model)
    set_way(model, "mask")
    try:
        yield
    finally:
        set_way(model, way)


def outputs(
    network: nn.Module,
    field: str,
    way: str,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    """The `field` that `network` gives for a flat row whose documents are kept apart in this `way`.

    network and field: a model and its `logits`, (1, T, vocabulary), or its decoder and `last_hidden_state`,
    (1, T, width). tokens and positions are int64 (1, T), bounds int32 (documents + 1), `longest` the tokens of
    the longest document. The model must be set to this way.
    """
    if way == "alone":
        documents = tokens.split(bounds.diff().tolist(), dim=1)
        return torch.cat([getattr(network(input_ids=each, use_cache=False), field) for each in documents], dim=1)
    arguments = {}
    if way in KERNELS:
        bounds = bounds.cpu() if way == "documents" else bounds  # waits for the device once, not in every block
        arguments = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    return getattr(network(input_ids=tokens, position_ids=positions, use_cache=False, **arguments), field)
