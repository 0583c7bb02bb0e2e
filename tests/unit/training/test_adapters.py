"""LoRA and QLoRA: only the adapters learn, alike on all ranks, and what is trained can be saved and restored."""

from __future__ import annotations

import pytest
import torch

from tests.unit.training.tiny_models import config, row, save, scratch
from training.models import ModelError, SummedLoss, Trained, load_model, load_tokenizer
from training.settings import Config

CPU = torch.device("cpu")


def load(settings: Config) -> torch.nn.Module:
    return load_model(settings, load_tokenizer(settings), CPU)


def train(model: torch.nn.Module, settings: Config, steps: int) -> list[float]:
    """Mean losses of some steps on one row."""
    loss, (tokens, labels, *rest) = SummedLoss(model, settings), row()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        value = loss(tokens, labels, *rest)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(value.detach()) / int((labels >= 0).sum()))
    return losses


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_only_adapters_learn(tuning, precision, tmp_path):
    settings = config(
        model=str(save("llama", tmp_path)), tuning=tuning, precision=precision, gradient_checkpointing=True
    )
    model = load(settings)
    frozen = {name: each.clone() for name, each in model.named_parameters() if not each.requires_grad}
    assert {each.dtype for each in model.parameters() if each.requires_grad} == {torch.float32}
    base = torch.bfloat16 if precision == "bf16" else torch.float32
    assert model.get_input_embeddings().weight.dtype == base
    assert (torch.uint8 in {each.dtype for each in frozen.values()}) == (tuning == "qlora")
    losses = train(model, settings, 30)
    assert losses[0] - losses[-1] > 0.5
    after = dict(model.named_parameters())
    assert all(torch.equal(each, after[name]) for name, each in frozen.items())


@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_scratch_base(tuning):
    settings = scratch(tuning=tuning)
    losses = train(load(settings), settings, 10)
    assert losses[0] - losses[-1] > 0.1


def test_evaluation_leaves_the_gradient_of_4_bit_weights_alone(tmp_path):
    settings = config(model=str(save("llama", tmp_path)), tuning="qlora")
    gradients = []
    for evaluated in (False, True):
        model = load(settings)
        loss = SummedLoss(model, settings)
        if evaluated:
            model.eval()
            with torch.no_grad():
                loss(*row())
            model.train()
        loss(*row()).backward()
        gradients.append([each.grad for each in model.parameters() if each.grad is not None])
    assert len(gradients[0]) == 28  # two matrices beside seven layers of two blocks
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert any(gradient.any() for gradient in gradients[0])


def test_adapters_start_alike_whatever_happened_before(tmp_path):
    directory, states = str(save("llama", tmp_path)), []
    for seed, before in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(before)
        states.append(Trained(load(config(model=directory, tuning="lora", seed=seed))).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_adapters_change_nothing_at_first(tmp_path):
    directory = str(save("llama", tmp_path))
    losses = [
        float(SummedLoss(load(settings), settings)(*row()).detach())
        for settings in (config(model=directory), config(model=directory, tuning="lora"))
    ]
    assert losses[0] == losses[1]


def test_targets(tmp_path):
    directory = str(save("gpt2", tmp_path))
    model = load(config(model=directory, tuning="lora", lora_targets="c_attn, mlp.c_proj"))
    names = {name.split(".lora_")[0].split(".h.0.")[1] for name in Trained(model).state_dict() if ".h.0." in name}
    assert names == {"attn.c_attn", "mlp.c_proj"}
    with pytest.raises(ModelError) as caught:
        load(config(model=directory, tuning="lora", lora_targets="c_attn,q_proj"))
    wanted = (
        f"lora_targets: {directory} has no layer 'q_proj'; write all-linear or some of c_attn, c_fc, c_proj, lm_head"
    )
    assert str(caught.value) == wanted


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_trained_state_comes_back(tuning):
    settings = scratch(tuning=tuning)
    model = load(settings)
    train(model, settings, 2)
    state = {name: tensor.clone() for name, tensor in Trained(model).state_dict().items()}
    assert all(("lora_" in name) == (tuning == "lora") for name in state)
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    expected = SummedLoss(model, settings)(*row())
    other = load(settings)
    assert float(SummedLoss(other, settings)(*row()).detach()) != float(expected.detach())
    Trained(other).load_state_dict(state)
    assert torch.equal(SummedLoss(other, settings)(*row()), expected)


def test_state_of_another_model_is_refused():
    state = Trained(load(scratch(tuning="lora", lora_rank=8))).state_dict()
    with pytest.raises(
        ModelError, match=r"^checkpoint: has in another shape 28 of the trained weights, such as .+lora_A"
    ):
        Trained(load(scratch(tuning="lora", lora_rank=4))).load_state_dict(state)
    with pytest.raises(
        ModelError, match=r"^checkpoint: lacks 20 of the trained weights, such as .+; model, tuning and"
    ):
        Trained(load(scratch())).load_state_dict(state)
    extra = state | {"more": torch.zeros(1)}
    with pytest.raises(ModelError, match=r"^checkpoint: has besides 1 of the trained weights, such as more;"):
        Trained(load(scratch(tuning="lora", lora_rank=8))).load_state_dict(extra)
