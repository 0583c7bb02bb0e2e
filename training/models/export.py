"""The result of a run as a directory that `AutoModelForCausalLM.from_pretrained` reads, with a model card."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import nn
from transformers import GenerationConfig

from training.files import fsync_file, hidden_path, publish
from training.models.adapters import causal_model, has_adapters

CARD = """---
library_name: {library}
pipeline_tag: text-generation
{base_line}---

# {title}

{what}

```python
{code}
```

| Training | |
|---|---|
{facts}
"""
FOUR_BITS = """
The base was held in 4 bits (nf4, double quantisation) during training. To get the same:

```python
from transformers import BitsAndBytesConfig

four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
model = AutoModelForCausalLM.from_pretrained("{directory}", quantization_config=four_bits)
```
"""


def export(model: nn.Module, tokenizer, directory: Path, card: Mapping[str, object], base: str = "") -> None:
    """Write the model, or its adapters, with the tokenizer and a model card; a former export is replaced whole.

    `card` has the facts of the training, such as {"held-out loss": 1.23}; its order is the card's. `base` is the hub
    id or directory that the model is known by elsewhere, if it was read from a copy of that. Adapters name it, or
    where they were read from; a base that exists nowhere else, made from scratch, is put beside them, into
    directory/base.
    """
    directory, causal = directory.absolute(), causal_model(model)
    try:
        causal.generation_config.validate(strict=True)
    except ValueError:  # such as a temperature without sampling (Llama 2), which cannot be saved
        causal.generation_config = GenerationConfig.from_model_config(causal.config)
    temporary = hidden_path(directory, "writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    base = base or causal.config.name_or_path
    if has_adapters(model):
        base = _write_adapters(model, temporary, directory, base)
    else:
        model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / "README.md").write_text(_card(model, directory, base, card), encoding="utf-8")
    for path in temporary.rglob("*"):
        # safetensors writes for its owner only; a result in a shared directory is for all to read.
        path.chmod(0o755 if path.is_dir() else 0o644)
        if path.is_file():
            fsync_file(path)
    temporary.chmod(0o755)
    publish(temporary, directory)


def _write_adapters(model: nn.Module, directory: Path, final: Path, base: str) -> str:
    """Save the adapters, and a base from scratch (no name) beside them; returns where `final` finds the base."""
    if base == "":
        copy.deepcopy(model).unload().save_pretrained(directory / "base")  # unload would take ours apart
        base = str(final / "base")
    elif Path(base).is_dir():
        base = str(Path(base).absolute())
    model.save_pretrained(directory)
    # Only in the file: peft would ask the hub about a base that is called by its id there.
    file = directory / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return base


def _card(model: nn.Module, directory: Path, base: str, card: Mapping[str, object]) -> str:
    """Text of the model card: what this is, how to load it, the facts of its training."""
    adapters, on_hub = has_adapters(model), base != "" and not Path(base).is_absolute()
    name = directory.parent.name or directory.name
    of = f"`{base}`" if base else "a small model from scratch"
    what = f"LoRA adapters for {of}, which is needed beside them." if adapters else f"All weights, trained from {of}."
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{directory}")' + ("  # base and adapters" if adapters else ""),
        f'tokenizer = AutoTokenizer.from_pretrained("{directory}")',
    ]
    beside = base == str(directory / "base")
    quantised = getattr(causal_model(model), "is_quantized", False) and not beside  # what is beside has them already
    facts = "\n".join(f"| {key} | {_one_line(value)} |" for key, value in card.items())
    text = CARD.format(
        library="peft" if adapters else "transformers",
        base_line=f"base_model: {base}\n" if on_hub else "",
        title=name,
        what=what,
        code="\n".join(lines),
        facts=facts,
    )
    return text + (FOUR_BITS.format(directory=directory) if quantised else "")


def _one_line(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
