"""The settings of a run, grouped by what they decide: names, meanings, defaults and what may not be.

The groups are dataclasses of their own for the reader's sake; together they are one flat `Config`, so that a YAML
file, `key=value` on a command line and `-e key=value` of Ansible all say the same name. No torch here: the control
node checks a config before it touches any training node.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection
from pathlib import Path

import yaml

DATA_FILES = (".jsonl", ".json", ".parquet", ".txt")
HUB = "hub:"
PLACEHOLDER = re.compile(r"(?<!{){(\w+)}(?!})")


class Group:
    """What the groups of settings share: one way to refuse a value."""

    def require(self, key: str, holds: bool, fix: str) -> None:
        """ValueError("key: value cannot be used; fix") unless `holds`."""
        if not holds:
            raise ValueError(f"{key}: {getattr(self, key)!r} cannot be used; {fix}")

    def require_at_least(self, lowest: int, *keys: str) -> None:
        for key in keys:
            self.require(key, getattr(self, key) >= lowest, f"write {lowest} or more")

    def require_choice(self, key: str, choices: Collection[str]) -> None:
        self.require(key, getattr(self, key) in choices, f"write one of {', '.join(choices)}")

    def require_fraction(self, *keys: str, one: bool = False) -> None:
        for key in keys:
            value = getattr(self, key)
            holds = 0 <= value <= 1 if one else 0 <= value < 1
            self.require(key, holds, f"write a number from 0 to {'1' if one else 'below 1'}")


@dataclasses.dataclass(kw_only=True, frozen=True)
class ModelSettings(Group):
    """Which network is trained, and which part of it."""

    model: str = "scratch"
    """`scratch` builds a small Llama from the scratch_* settings; else a local Hugging Face directory or a
    hub id."""
    tokenizer: str = ""
    """`bytes` (one token per byte, needs no files), a local directory or a hub id; empty: `bytes` for a
    scratch model, else the model's own."""
    scratch_hidden: int = 128
    """Width of a scratch model; a multiple of scratch_heads."""
    scratch_layers: int = 4
    """Decoder blocks of a scratch model."""
    scratch_heads: int = 4
    """Attention heads of a scratch model."""
    scratch_mlp: int = 384
    """Inner width of the feed-forward part of a scratch model."""
    dropout: float = 0.0
    """Attention dropout of a scratch model, 0 <= dropout < 1."""

    tuning: str = "full"
    """`full`: all weights; `lora`: small adapters beside frozen weights; `qlora`: the same beside weights
    kept in 4 bits."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 32
    """The adapters' output is multiplied by lora_alpha / lora_rank."""
    lora_dropout: float = 0.0
    """Dropout in front of the adapters, 0 <= lora_dropout < 1."""
    lora_targets: str = "all-linear"
    """`all-linear`, or the names of the layers that get an adapter, such as `q_proj,v_proj`."""

    precision: str = "fp32"
    """`fp32`, or `bf16`: forward and backward in bf16, trained weights and optimizer in fp32."""
    gradient_checkpointing: bool = False
    """Compute the activations of each block again in the backward pass: about a third more time, much less
    memory."""
    compile: bool = False
    """torch.compile of each decoder block: minutes at the start, faster steps on GPUs."""
    attention: str = "auto"
    """How the documents of a packed row are kept apart: `documents` (one attention call each), `varlen`
    (one kernel for all, GPUs, bf16), `mask` (one masked call); `auto` takes the fastest that works here."""

    def __post_init__(self) -> None:
        self.require_at_least(1, "scratch_hidden", "scratch_layers", "scratch_heads", "scratch_mlp")
        self.require_at_least(1, "lora_rank", "lora_alpha")
        self.require_fraction("dropout", "lora_dropout")
        self.require_choice("tuning", ("full", "lora", "qlora"))
        self.require_choice("precision", ("fp32", "bf16"))
        self.require_choice("attention", ("auto", "documents", "varlen", "mask"))
        self.require("model", self.model != "", "write scratch, a directory or a hub id")
        self.require("lora_targets", self.lora_targets.strip(", ") != "", "write all-linear or names of layers")
        for key in ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets"):
            default = ModelSettings.__dataclass_fields__[key].default
            used = self.tuning != "full" or getattr(self, key) == default
            self.require(key, used, f"it does nothing with tuning full: write tuning lora or qlora, or {default} here")
        fits = self.attention != "varlen" or self.precision == "bf16"
        self.require("attention", fits, "this kernel needs precision bf16: write that, or auto here")
        even_heads = 2 * self.scratch_heads  # rotary positions turn pairs, so a head's width is even
        fits = self.scratch_hidden % even_heads == 0
        self.require("scratch_hidden", fits, f"must be a multiple of 2 x scratch_heads ({even_heads})")


@dataclasses.dataclass(kw_only=True, frozen=True)
class DataSettings(Group):
    """What it is trained on, and how that becomes rows of tokens."""

    data_train: str = ""
    """Training data: a .jsonl, .json, .parquet or .txt file, a directory of such files of one kind, or
    `hub:NAME`, a data set of the hub. Relative paths start at the directory that the run is started in."""
    data_heldout: str = ""
    """Held-out data of the same kind; empty: a fixed tenth of the training data is kept aside."""
    data_hub_config: str = ""
    """Which part of a `hub:` data set, such as `wikitext-2-raw-v1`; empty: its only one."""
    data_split_train: str = "train"
    """Split of a `hub:` data set to train on."""
    data_split_heldout: str = ""
    """Split of a `hub:` data set to hold out; empty: a fixed tenth of the training split."""
    data_format: str = "auto"
    """`pairs` (question and answer), `chat` (a list of messages with role and content) or `text`; `auto`:
    text for .txt, else by the fields of the first row."""
    instruction_field: str = "instruction"
    """Name of the question field of pairs."""
    input_field: str = "input"
    """Name of the optional field with the material of the question; `input` (Alpaca) is taken where this one is
    absent."""
    response_field: str = "response"
    """Name of the answer field of pairs; `output` (Alpaca) is taken where this one is absent."""
    messages_field: str = "messages"
    """Name of the field with the messages of chats."""
    text_field: str = "text"
    """Name of the text field of rows that are plain text."""
    prompt_template: str = "### Instruction:\n{instruction}\n\n### Response:\n"
    """Text before the answer of a pair; must contain {instruction}, may contain {input}; without it the input
    follows the instruction after an empty line. Only the answer and the end mark count in the loss."""
    seq_len: int = 512
    """Tokens of a row: longer documents are cut (pairs, chats) or divided (text)."""
    packing: bool = True
    """Fill rows with several documents that do not see each other; false: one document per row."""
    bad_rows: float = 0.01
    """Share of rows that may be unusable; they are named and left out. More of them end the run, 0 to 1."""
    data_from_share: bool = False
    """Read the packed rows from the shared directory instead of copying them to each node's own disk."""
    heldout_rows: int = 0
    """Evaluate on the first so many held-out documents; 0: on all of them."""

    def __post_init__(self) -> None:
        self.require_at_least(0, "heldout_rows")
        self.require("seq_len", self.seq_len >= 8, "write 8 or more")
        self.require_fraction("bad_rows", one=True)
        self.require_choice("data_format", ("auto", "pairs", "chat", "text"))
        self.require("prompt_template", "{instruction}" in self.prompt_template, "must contain {instruction}")
        strange = [name for name in PLACEHOLDER.findall(self.prompt_template) if name not in ("instruction", "input")]
        fix = f"{{{strange[0]}}} is never filled in: write {{instruction}} or {{input}}" if strange else ""
        self.require("prompt_template", not strange, fix)
        for key in ("data_train", "data_heldout"):
            fix = f"write a path that ends in {', '.join(DATA_FILES)}, a directory (with / at its end), or hub:NAME"
            self.require(key, getattr(self, key).startswith(HUB) or self._suffix(key) in ("", *DATA_FILES), fix)
        self.require("data_train", self.data_train != HUB, "write hub:NAME, such as hub:Salesforce/wikitext")
        plain_text = self._suffix("data_train") == ".txt" and self.data_format in ("pairs", "chat")
        self.require("data_format", not plain_text, "a .txt file holds plain text: write text, or give .jsonl data")
        self._check_heldout()

    def _suffix(self, key: str) -> str:
        """`.jsonl` or the like; empty for a directory and a data set of the hub."""
        value = getattr(self, key)
        return "" if value.endswith("/") or value.startswith(HUB) else Path(value).suffix

    def _check_heldout(self) -> None:
        if self.data_train.startswith(HUB):
            fix = "leave it empty and set data_split_heldout: the held-out rows come from the same data set"
            self.require("data_heldout", self.data_heldout == "", fix)
            return
        self.require("data_heldout", not self.data_heldout.startswith(HUB), "only a data_train of hub:NAME has such")
        suffixes = {self._suffix(key) for key in ("data_train", "data_heldout")} - {""}
        fix = f"must be of the same kind as data_train ({self.data_train})"
        self.require("data_heldout", len(suffixes) < 2, fix)
        for key in ("data_hub_config", "data_split_heldout"):
            fix = "it does nothing without a data_train of hub:NAME: leave it out"
            self.require(key, getattr(self, key) == "", fix)


@dataclasses.dataclass(kw_only=True, frozen=True)
class StepSettings(Group):
    """How long it is trained and how large each step is."""

    steps: int = 0
    """Optimizer steps of the whole run; 0: as many as `epochs` needs."""
    epochs: int = 1
    """Passes over the training data; used when `steps` is 0."""
    global_batch: int = 32
    """Rows per optimizer step over all ranks together, whatever their number; a multiple of micro_batch."""
    micro_batch: int = 4
    """Rows per forward pass; whole micro-batches are handed to the ranks."""
    lr: float = 3e-4
    """Highest learning rate, reached after the warm-up."""
    min_lr_fraction: float = 0.1
    """The cosine ends at lr times this, 0 to 1."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises in a straight line from 0 to lr."""
    weight_decay: float = 0.1
    """AdamW weight decay on matrices; vectors (norms, biases) have none."""
    beta1: float = 0.9
    """AdamW beta1, 0 <= beta1 < 1."""
    beta2: float = 0.95
    """AdamW beta2, 0 <= beta2 < 1."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: no clipping."""
    seed: int = 1
    """Order of the data, initial weights of a scratch model, adapters and dropout all follow from it."""

    def __post_init__(self) -> None:
        self.require_at_least(0, "steps", "warmup_steps", "weight_decay", "clip_norm", "seed")
        self.require_at_least(1, "epochs", "global_batch", "micro_batch")
        self.require_fraction("beta1", "beta2")
        self.require_fraction("min_lr_fraction", one=True)
        self.require("lr", 0 < self.lr <= 1, "write a number above 0 and at most 1, such as 0.0003")
        whole = self.global_batch % self.micro_batch == 0
        near = max(1, self.global_batch // self.micro_batch) * self.micro_batch
        self.require("global_batch", whole, f"must be a multiple of micro_batch ({self.micro_batch}), such as {near}")


@dataclasses.dataclass(kw_only=True, frozen=True)
class RunSettings(Group):
    """What happens around the steps: saving, showing, waiting."""

    recipe: str = "finetune"
    """The program: `finetune`, or `hello`, a regression of a minute that shows that a cluster works."""
    save_every: int = 50
    """Steps between checkpoints; one is written at the end and at a stop in any case."""
    keep: int = 2
    """Newest checkpoints to keep, at least 2."""
    log_every: int = 10
    """Steps between progress lines and metrics."""
    eval_every: int = 0
    """Steps between held-out evaluations besides start, end of each epoch and end; 0: only those."""
    sample_tokens: int = 200
    """Length of the text generated at the end from a held-out prompt; 0: none."""
    profile_steps: int = 0
    """Steps of each start to record with the PyTorch profiler, from its eleventh on; 0: none."""
    bucket_mb: int = 50
    """Size of the pieces in which gradients are exchanged; more suits slow networks."""
    backend: str = "auto"
    """`auto`: nccl where CUDA is there, else gloo; `gloo` (on CPU) or `nccl` to insist."""
    timeout_start: int = 1800
    """Seconds that the ranks wait for each other until the first step is done (data and models load)."""
    timeout_step: int = 0
    """Seconds that the ranks wait for each other after the first step before they give a lost peer up; 0:
    five times the slowest step so far, at least 60, with `compile` 300."""

    def __post_init__(self) -> None:
        self.require_at_least(1, "save_every", "log_every", "bucket_mb", "timeout_start")
        self.require_at_least(0, "eval_every", "sample_tokens", "profile_steps", "timeout_step")
        self.require("keep", self.keep >= 2, "write 2 or more: one may be damaged while the other is written")
        self.require_choice("backend", ("auto", "gloo", "nccl"))
        self.require_choice("recipe", ("finetune", "hello"))


# Settings that a later start of the same run may change (data are compared by content, not by path).
MAY_CHANGE = {
    *("data_train", "data_heldout", "data_from_share", "bad_rows", "heldout_rows"),
    *("steps", "epochs", "lr", "min_lr_fraction", "warmup_steps", "clip_norm"),
    *("precision", "gradient_checkpointing", "compile", "attention"),
    "micro_batch",  # of the result only what dropout draws depends on it
    *(field.name for field in dataclasses.fields(RunSettings) if field.name != "recipe"),
}


@dataclasses.dataclass(kw_only=True, frozen=True)
class Config(ModelSettings, DataSettings, StepSettings, RunSettings):
    """All settings of a run. Anything out of range raises ValueError("key: what, what to write instead")."""

    def __post_init__(self) -> None:
        for group in (ModelSettings, DataSettings, StepSettings, RunSettings):
            group.__post_init__(self)
        for key in ("model", "tokenizer", "data_train", "data_heldout"):
            fix = "~ is not the same directory on every machine: write the whole path"
            self.require(key, not getattr(self, key).startswith("~"), fix)
        recorded = not (self.profile_steps and self.steps) or 10 + self.profile_steps <= self.steps
        fix = f"the recording starts at step 11: write steps {10 + self.profile_steps} or more, or 0 here"
        self.require("profile_steps", recorded, fix)
        endless = self.recipe == "hello" and self.steps == 0
        self.require("steps", not endless, "hello has no epochs: write 1 or more, such as 400")
        needs_data = self.recipe == "finetune"
        fix = f"write the path of a {', '.join(DATA_FILES)} file, a directory, or hub:NAME"
        self.require("data_train", not needs_data or self.data_train != "", fix)

    def to_yaml(self) -> str:
        """The complete config as sorted YAML; loading it again gives an equal Config."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=True, allow_unicode=True)

    def identity(self) -> dict[str, object]:
        """The settings that make a run what it is; a checkpoint of another identity is refused."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in MAY_CHANGE}

    def sha256(self) -> str:
        """Hex SHA-256 of the complete config; equal on all ranks, or the run does not start."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()
