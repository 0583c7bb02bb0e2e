"""Documents that share a row must not see each other: whatever is in the row, each gives what it gives alone."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.nn import functional

from tests.unit.training.tiny_models import FAMILIES, LENGTHS, build, config, row
from training.data.batch import IGNORED
from training.models import ModelError, SummedLoss, attention, attention_choice
from training.models.adapters import causal_model, with_adapters
from training.models.attention import outputs, own_attention, way_of
from training.models.attention_choice import settle

# What `auto` takes on a CPU; the rest cannot take an attention from outside, or needs a mask for its window.
WAYS = dict.fromkeys(FAMILIES, "documents") | {"falcon": "alone"}
WAYS |= dict.fromkeys(["mistral with a window", "gemma2"], "mask")


def tuned(family: str, tuning: str, way: str = "auto") -> tuple[torch.nn.Module, object]:
    """A model in train mode, set to a way, with adapters that change something if `tuning` is lora."""
    settings = config(tuning=tuning, attention=way)
    model = build(family)
    settle(model, settings)
    if tuning == "lora":
        model = with_adapters(model, settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn_like(parameter) * 0.1
    return model.train(), settings


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_packed_documents_equal_those_alone(family, tuning):
    torch.manual_seed(3)
    model, _ = tuned(family, tuning)
    assert way_of(model) == WAYS[family]
    causal, (tokens, _, positions, bounds, longest) = causal_model(model), row()
    packed = outputs(causal, "logits", way_of(model), tokens, positions, bounds, longest)[0]
    with own_attention(causal):
        alone = torch.cat([causal(input_ids=each, use_cache=False).logits[0] for each in tokens.split(LENGTHS, dim=1)])
        together = causal(input_ids=tokens, use_cache=False).logits[0]
    assert model.training
    assert (packed - alone).abs().max() < 1e-5
    assert (together - alone).abs().max() > 1e-3  # without a way, documents see each other


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_of_a_row_are_the_sums_of_its_documents(family, tuning):
    torch.manual_seed(3)
    model, settings = tuned(family, tuning)
    loss, trained = SummedLoss(model, settings), [each for each in model.parameters() if each.requires_grad]
    found = loss(*row())
    gradients = torch.autograd.grad(found, trained)
    causal, (tokens, labels, *_) = causal_model(model), row()
    with own_attention(causal):
        expected = sum(
            functional.cross_entropy(
                causal(input_ids=each, use_cache=False).logits[0], label[0], reduction="sum", ignore_index=IGNORED
            )
            for each, label in zip(tokens.split(LENGTHS, dim=1), labels.split(LENGTHS, dim=1), strict=True)
        )
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(expected.detach()) > 50
    for gradient, other in zip(gradients, torch.autograd.grad(expected, trained), strict=True):
        assert (gradient - other).norm() <= 5e-6 * other.norm() + 1e-7


@pytest.mark.parametrize("lengths", [LENGTHS, (7, 7, 7), (12,)], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])  # qwen3 has fewer heads for keys than for queries
def test_all_ways_agree(family, lengths):
    losses, gradients = {}, {}
    for way in ("documents", "mask", "alone"):
        torch.manual_seed(3)
        model, settings = tuned(family, "full", "mask")
        attention.set_way(model, way)
        loss = SummedLoss(model, settings)(*row(lengths))
        losses[way], gradients[way] = float(loss.detach()), torch.autograd.grad(loss, list(model.parameters()))
    assert losses["documents"] == pytest.approx(losses["alone"], rel=1e-6)
    assert losses["mask"] == pytest.approx(losses["alone"], rel=1e-6)
    for packed, alone in zip(gradients["documents"], gradients["alone"], strict=True):
        assert (packed - alone).norm() <= 5e-6 * alone.norm() + 1e-7


def forgets_bounds(module, query, key, value, mask, *, cu_seq_lens_q, **others):
    return attention.KERNELS["documents"](module, query, key, value, mask, cu_seq_lens_q=cu_seq_lens_q[[0, -1]])


def forgets_scaling(*inputs, scaling=None, **others):
    return attention._documents(*inputs, **others, scaling=0.9 * scaling)


@pytest.mark.parametrize("kernel", [forgets_bounds, forgets_scaling])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_wrong_kernel_is_not_used(kernel, precision, monkeypatch, capsys):
    monkeypatch.setattr(attention_choice, "KERNELS", {"documents": kernel})
    model = build("llama")
    assert settle(model, config(precision=precision)) == "mask"
    assert "attention: documents is not used (it differs from masked attention by " in capsys.readouterr().out
    assert model.config._attn_implementation == "sdpa"


def test_kernel_with_a_wrong_gradient_is_not_used(monkeypatch):
    def half_of_the_keys_gradient(module, query, key, *others, **named):
        return attention._documents(module, query, 0.5 * key + 0.5 * key.detach(), *others, **named)

    monkeypatch.setattr(attention_choice, "KERNELS", {"documents": half_of_the_keys_gradient})
    assert settle(build("llama"), config()) == "mask"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_documents_of_a_model_with_a_leak_go_through_alone(precision, monkeypatch, capsys):
    model = build("llama")
    block = model.model.layers[0]
    forward = block.forward

    def with_a_convolution(states, *others, **named):
        before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)
        return forward(states + 0.1 * before, *others, **named)

    monkeypatch.setattr(block, "forward", with_a_convolution)
    assert settle(model, config(precision=precision)) == "alone"
    assert capsys.readouterr().out.count("documents of a row see each other in this model") == 2


def test_wanted_way_that_does_not_pass_is_an_error():
    with pytest.raises(ModelError, match=r"^attention: varlen cannot be used with this model here \(.+\); write auto$"):
        settle(build("llama"), config(attention="varlen", precision="bf16"))
    with pytest.raises(ModelError, match=r"a layer of this model sees 16 tokens, less than seq_len \(64\)"):
        settle(build("mistral with a window"), config(attention="documents"))


def test_model_that_looks_ahead_is_refused():
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    model = transformers.BertLMHeadModel(transformers.BertConfig(num_attention_heads=4, **sizes))
    with pytest.raises(ModelError, match=r"^model: tiny is not a causal language model; its places see what follows"):
        settle(model, config())
