"""The summed loss: equal to plain cross-entropy, without its memory, the same bits each time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.training.tiny_models import build, config, row, scratch
from training.data.batch import IGNORED
from training.models import SummedLoss, load_model, load_tokenizer
from training.models import loss as implementation
from training.models.adapters import with_adapters
from training.models.attention_choice import settle
from training.models.loss import Head

TOKENS, VOCABULARY, WIDTH = 300, 1000, 16


def inputs(bias: bool, trained: bool = True, dtype: torch.dtype = torch.float32) -> tuple:
    """(hidden states, head, labels) with gradients wanted."""
    torch.manual_seed(5)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=bias).requires_grad_(trained)
    nn.init.normal_(linear.weight, std=0.5)
    return torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True), linear, torch.randint(VOCABULARY, (TOKENS,))


def plain(hidden: torch.Tensor, linear: nn.Linear, labels: torch.Tensor, scale: float, softcap: float | None):
    logits = linear(hidden) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return functional.cross_entropy(logits, labels, reduction="sum")


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("softcap", [None, 2.0], ids=["no cap", "cap"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_head_equals_plain_cross_entropy(bias, softcap, scale, monkeypatch):
    monkeypatch.setattr(implementation, "PIECE", (1, 64))  # several pieces, the last one not full
    hidden, linear, labels = inputs(bias)
    expected = plain(hidden, linear, labels, scale, softcap)
    wanted = torch.autograd.grad(3 * expected, [hidden, *linear.parameters()])
    found = Head(linear, scale, softcap)(hidden, labels, torch.float32)
    given = torch.autograd.grad(3 * found, [hidden, *linear.parameters()])
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for one, other in zip(given, wanted, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


def test_bf16_sums_are_kept_in_fp32(monkeypatch):
    monkeypatch.setattr(implementation, "PIECE", (1, 8))
    hidden, linear, labels = inputs(bias=False)
    exact_hidden = hidden.detach().bfloat16().float().requires_grad_()
    linear.weight.data = linear.weight.data.bfloat16().float()
    expected = plain(exact_hidden, linear, labels, 1.0, None)
    wanted = torch.autograd.grad(expected, linear.weight)[0]
    found = Head(linear, 1.0, None)(hidden.detach().bfloat16(), labels, torch.bfloat16)
    given = torch.autograd.grad(found, linear.weight)[0]
    assert found.dtype == given.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)  # of rounded logits
    assert (given - wanted).norm() <= 5e-3 * wanted.norm()


def test_same_bits_each_time():
    results = []
    for _ in range(2):
        hidden, linear, labels = inputs(bias=True)
        found = Head(linear, 1.0, None)(hidden, labels, torch.float32)
        results.append([found.detach(), *torch.autograd.grad(found, [hidden, *linear.parameters()])])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that is made, and the names and shapes of all that is made."""

    def __init__(self):
        super().__init__()
        self.elements, self.operations = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
            self.operations.append((function.__name__, tuple(result.shape)))
        return result


def test_logits_of_all_tokens_never_exist(monkeypatch):
    monkeypatch.setattr(implementation, "CPU_LOGITS", 64 * VOCABULARY)
    hidden, linear, labels = inputs(bias=False)
    with Largest() as largest:
        Head(linear, 1.0, None)(hidden, labels, torch.float32).backward()
    assert largest.elements == 64 * VOCABULARY
    with Largest() as largest:
        plain(hidden, linear, labels, 1.0, None)
    assert largest.elements == TOKENS * VOCABULARY


@pytest.mark.parametrize(("trained", "gradients", "products"), [(True, True, 3), (False, True, 2), (True, False, 1)])
def test_gradients_that_nobody_wants_are_not_computed(trained, gradients, products):
    hidden, linear, labels = inputs(bias=False, trained=trained)
    with Largest() as seen, torch.set_grad_enabled(gradients):
        Head(linear, 1.0, None)(hidden, labels, torch.float32)
    assert len([name for name, _ in seen.operations if "mm" in name]) == products


def test_only_places_that_count_reach_the_head(monkeypatch):
    settings = scratch()
    model = load_model(settings, load_tokenizer(settings), torch.device("cpu"))
    loss, seen = SummedLoss(model, settings), []
    call = Head.__call__
    monkeypatch.setattr(
        Head, "__call__", lambda head, hidden, *rest: (seen.append(len(hidden)), call(head, hidden, *rest))[1]
    )
    tokens, labels, *rest = row()
    loss(tokens, labels, *rest)
    loss(tokens, labels.clamp(min=0), *rest)
    assert seen == [int(labels.ne(IGNORED).sum()), labels.numel()]


def test_rank_without_work_has_all_gradients_and_they_are_zero():
    settings = scratch()
    model = load_model(settings, load_tokenizer(settings), torch.device("cpu"))
    loss = SummedLoss(model, settings)(*row((1,), counted=False))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("family", ["granite", "gemma2", "cohere", "phi"])
def test_what_families_do_to_their_logits_is_known(family):
    model = build(family)
    settle(model, config())
    assert SummedLoss(model, config()).head is not None


def test_head_that_does_something_unknown_is_left_to_the_model(capsys):
    model = build("llama")
    settle(model, config())
    forward = model.forward

    def doubled(*others, **named):
        output = forward(*others, **named)
        output.logits = output.logits * 2
        return output

    model.forward = doubled
    loss = SummedLoss(model, config())
    assert loss.head is None
    assert "this model changes its logits in a way of its own" in capsys.readouterr().out
    tokens, labels, *rest = row()
    found = loss(tokens, labels, *rest)
    logits = doubled(
        input_ids=tokens, position_ids=rest[0], use_cache=False, cu_seq_lens_q=rest[1], max_length_q=rest[2]
    ).logits
    expected = functional.cross_entropy(logits[0], labels[0], reduction="sum", ignore_index=IGNORED)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_adapter_on_the_head_is_trained():
    torch.manual_seed(1)
    settings = config(tuning="lora", lora_targets="lm_head")
    model = build("llama")
    settle(model, settings)
    model = with_adapters(model, settings)
    loss = SummedLoss(model, settings)
    assert loss.head is None
    loss(*row()).backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
