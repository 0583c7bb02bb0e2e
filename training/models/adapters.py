"""Adapters beside frozen weights (LoRA, by peft), and what of a model is trained at all.

peft is imported where it is needed: it takes seconds, and with it comes bitsandbytes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from training.data.order import key_of
from training.models.errors import ModelError, first_line
from training.settings import Config

ALL = "all-linear"


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The causal language model itself, without what peft puts around it."""
    return model.get_base_model() if has_adapters(model) else model


def has_adapters(model: nn.Module) -> bool:
    """Whether peft is around `model`."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def _of_language(model: PreTrainedModel) -> set[int]:
    """The ids of the modules that read and write text; models that see images have others besides."""
    parts = [model.get_decoder(), model.get_output_embeddings()]
    return {id(module) for part in parts if part is not None for module in part.modules()}


def freeze_others(model: PreTrainedModel) -> None:
    """Freeze what text does not pass through: it would get no gradient, and DDP would wait for it."""
    ours = _of_language(model)
    for module in model.modules():
        if id(module) not in ours:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def quiet_bitsandbytes() -> None:
    """Keep bitsandbytes, before its import, from advising to install what CPUs do not need."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def with_adapters(model: PreTrainedModel, config: Config) -> nn.Module:
    """`model` with all its weights frozen and new adapters in fp32 that change nothing yet.

    Their first values follow from the seed alone, so all ranks start alike. Errors: ModelError when
    lora_targets names no layer of the model.
    """
    quiet_bitsandbytes()
    from peft import LoraConfig, get_peft_model

    names = [name.strip() for name in config.lora_targets.split(",") if name.strip()]
    ours = _of_language(model)
    linear = {
        name: id(module) in ours for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    layers = {name for name, of_language in linear.items() if of_language}
    for name in names:
        if name != ALL and not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            known = ", ".join(sorted({layer.rpartition(".")[2] for layer in layers}))
            raise ModelError(f"lora_targets: {config.model} has no layer {name!r}; write {ALL} or some of {known}")
    targets = ALL if ALL in names else names
    if len(layers) < len(linear):  # peft would take those of the part that sees images, too
        head = model.get_output_embeddings()
        own = {name for name, module in model.named_modules() if name in layers and module is not head}
        chosen = own if ALL in names else {each for each in own for name in names if each.endswith(f".{name}")}
        targets = sorted(chosen)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_of(config.seed, "adapters"))
        try:
            return get_peft_model(model, lora)
        except ValueError as error:
            raise ModelError(f"lora_targets: {config.lora_targets} cannot be used ({first_line(error)})") from None


class Trained:
    """The trained part of a model as a state to save and restore: all weights, or only the adapters.

    The names do not depend on compiling; weights that the model uses in two places are there once.
    """

    def __init__(self, model: nn.Module):
        self.parameters = {
            name.replace("_orig_mod.", ""): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Name -> tensor; the tensors are the parameters' own memory, which training goes on changing."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy the values of `state` into the parameters. Errors: ModelError unless names and shapes are equal."""
        missing, foreign = self.parameters.keys() - state.keys(), state.keys() - self.parameters.keys()
        shapes = {name: tuple(state[name].shape) for name in self.parameters.keys() & state.keys()}
        other = {name for name, shape in shapes.items() if shape != tuple(self.parameters[name].shape)}
        for what, names in (("lacks", missing), ("has besides", foreign), ("has in another shape", other)):
            if names:
                raise ModelError(
                    f"checkpoint: {what} {len(names)} of the trained weights, such as {min(names)}; "
                    "model, tuning and lora_* must be those that it was made with"
                )
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])
