"""The settings of a run: a YAML file plus `key=value` overrides, checked before anything else happens.

Needs PyYAML only, no torch: the control node checks a config with it before it touches any training node.

    python -m training.config FILE [key=value ...] [--output OUT.yaml]

prints (or writes) the complete effective config as sorted YAML and exits 0; a bad one exits 2 with one line.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import math
import re
import sys
from pathlib import Path

import yaml

from training.files import write_atomically

COMMAND_LINE = "command line"
# YAML 1.1 reads 3e-4 as text because it wants a dot and a signed exponent; people write it all the same.
NUMBER_WITH_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
POSITIVE = (
    *("scratch_hidden", "scratch_layers", "scratch_heads", "scratch_mlp", "epochs", "global_batch"),
    *("micro_batch", "save_every", "log_every", "timeout_start", "timeout_step"),
)
NOT_NEGATIVE = (
    *("heldout_rows", "steps", "warmup_steps", "weight_decay", "clip_norm", "eval_every"),
    *("sample_tokens", "seed"),
)
# Settings that a later start of the same run may change (data files are compared by content, not by path).
MAY_CHANGE = {
    *(
        "data_train",
        "data_heldout",
        "heldout_rows",
        "steps",
        "epochs",
        "lr",
        "min_lr_fraction",
        "warmup_steps",
    ),
    *("clip_norm", "precision", "save_every", "keep", "log_every", "eval_every", "sample_tokens", "backend"),
    *("timeout_start", "timeout_step"),
}


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line with file, key and the fix."""

    def __init__(self, where: str, key: str, problem: str):
        place = f"{where}: {key}" if key else where
        super().__init__(f"{place}: {problem}")


@dataclasses.dataclass(kw_only=True, frozen=True)
class Config:
    """All settings of a run. Anything out of range raises ValueError("key: what, what to write instead")."""

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

    data_train: str = ""
    """Training data: a .jsonl file of instruction/response pairs or a .txt file. Relative paths start at the
    directory that the run is started in."""
    data_heldout: str = ""
    """Held-out data of the same kind; empty: a fixed tenth of the training file is kept aside."""
    heldout_rows: int = 0
    """Evaluate on the first so many held-out rows; 0: on all of them."""
    instruction_field: str = "instruction"
    """Name of the question field in a .jsonl row."""
    response_field: str = "response"
    """Name of the answer field in a .jsonl row."""
    prompt_template: str = "### Instruction:\n{instruction}\n\n### Response:\n"
    """Text before the answer; must contain {instruction}. Only the answer and the end mark count in the
    loss."""
    seq_len: int = 512
    """Longest row in tokens; longer pairs are cut, text is divided into rows of this length."""

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
    precision: str = "fp32"
    """`fp32`, or `bf16`: forward and backward in bf16, weights and optimizer in fp32."""
    seed: int = 1
    """Order of the data, initial weights of a scratch model and dropout all follow from it."""

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
    backend: str = "auto"
    """`auto`: nccl where CUDA is there, else gloo; `gloo` (on CPU) or `nccl` to insist."""
    timeout_start: int = 1800
    """Seconds that the ranks wait for each other until the first step is done (models load, caches fill)."""
    timeout_step: int = 300
    """Seconds that the ranks wait for each other after the first step before they give a lost peer up."""

    def __post_init__(self) -> None:
        for key in POSITIVE:
            self._require(key, getattr(self, key) >= 1, "write 1 or more")
        for key in NOT_NEGATIVE:
            self._require(key, getattr(self, key) >= 0, "write 0 or more")
        for key in ("beta1", "beta2", "dropout"):
            self._require(key, 0 <= getattr(self, key) < 1, "write a number from 0 to below 1")
        for key, choices in (("precision", ("fp32", "bf16")), ("backend", ("auto", "gloo", "nccl"))):
            self._require(key, getattr(self, key) in choices, f"write one of {', '.join(choices)}")
        self._require("lr", self.lr > 0, "write a number above 0, such as 0.0003")
        self._require("min_lr_fraction", 0 <= self.min_lr_fraction <= 1, "write a number from 0 to 1")
        self._require("keep", self.keep >= 2, "write 2 or more: one may be damaged while the other is written")
        self._require("seq_len", self.seq_len >= 8, "write 8 or more")
        self._require("model", self.model != "", "write scratch, a directory or a hub id")
        self._require("data_train", self.data_train != "", "write the path of a .jsonl or .txt file")
        for key in ("data_train", "data_heldout"):
            known = getattr(self, key).endswith((".jsonl", ".txt")) or getattr(self, key) == ""
            self._require(key, known, "write a path that ends in .jsonl (pairs) or .txt (plain text)")
        same_kind = self.data_heldout == "" or Path(self.data_heldout).suffix == Path(self.data_train).suffix
        self._require("data_heldout", same_kind, f"must be of the same kind as data_train ({self.data_train})")
        self._require("prompt_template", "{instruction}" in self.prompt_template, "must contain {instruction}")
        whole = self.global_batch % self.micro_batch == 0
        near = max(1, self.global_batch // self.micro_batch) * self.micro_batch
        self._require("global_batch", whole, f"must be a multiple of micro_batch ({self.micro_batch}), such as {near}")
        even_heads = 2 * self.scratch_heads  # rotary positions turn pairs, so a head's width is even
        fits = self.scratch_hidden % even_heads == 0
        self._require("scratch_hidden", fits, f"must be a multiple of 2 x scratch_heads ({even_heads})")

    def _require(self, key: str, holds: bool, fix: str) -> None:
        if not holds:
            raise ValueError(f"{key}: {getattr(self, key)!r} cannot be used; {fix}")

    def to_yaml(self) -> str:
        """The complete config as sorted YAML; loading it again gives an equal Config."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=True, allow_unicode=True)

    def identity(self) -> dict[str, object]:
        """The settings that make a run what it is; a checkpoint of another identity is refused."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in MAY_CHANGE}

    def sha256(self) -> str:
        """Hex SHA-256 of the complete config; equal on all ranks, or the run does not start."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()


def load(file: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read `file`, lay `key=value` overrides over it and check everything.

    Errors: ConfigError, one line that names the file (or the command line), the key and the fix.
    """
    values, origin = {}, {}
    for key, value in _read_yaml(Path(file)).items():
        values[key], origin[key] = _checked(str(file), key, value), str(file)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(COMMAND_LINE, override, "is not a setting; write key=value, such as steps=100")
        values[key], origin[key] = _checked(COMMAND_LINE, key, _from_text(key, text)), COMMAND_LINE
    try:
        return Config(**values)
    except ValueError as error:
        key, _, problem = str(error).partition(": ")
        raise ConfigError(origin.get(key, str(file)), key, problem) from None


def _read_yaml(file: Path) -> dict[str, object]:
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(
            str(file), "", "no such file; write the path of a config such as training/configs/demo.yaml"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), "", f"cannot be read ({error}); give a readable UTF-8 YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigError(
            str(file), "", f"is not valid YAML{line} ({problem}); write one `key: value` per line"
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(str(file), "", f"holds a {type(content).__name__}; write one `key: value` per line")
    seen = set()
    for key_node, _ in node.value:  # the YAML loader silently keeps the last of two equal keys
        if key_node.value in seen:
            again = key_node.start_mark.line + 1
            raise ConfigError(str(file), key_node.value, f"is there twice (again in line {again}); delete one")
        seen.add(key_node.value)
    return content


def _field_types() -> dict[str, str]:
    return {field.name: field.type for field in dataclasses.fields(Config)}


def _from_text(key: str, text: str) -> object:
    if _field_types().get(key) == "str":
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _checked(where: str, key: object, value: object) -> object:
    """The value in its field's type, or ConfigError."""
    types = _field_types()
    if key not in types:
        near = difflib.get_close_matches(str(key), types, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "known keys: " + ", ".join(sorted(types))
        raise ConfigError(where, str(key), f"unknown key; {hint}")
    wanted = types[key]
    if wanted == "float" and isinstance(value, str) and NUMBER_WITH_EXPONENT.fullmatch(value):
        value = float(value)
    if wanted == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value).__name__ != wanted:
        want = {"int": "a whole number such as 10", "float": "a number such as 0.1", "str": "text; quote it"}[wanted]
        raise ConfigError(where, key, f"{value!r} is a {type(value).__name__}; write {want}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(where, key, f"{value!r} is not finite; write a number such as 0.1")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.config", description=__doc__.splitlines()[0])
    parser.add_argument("file", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--output", type=Path, help="write the effective config here instead of printing it")
    options = parser.parse_intermixed_args(arguments)
    try:
        config = load(options.file, options.overrides)
        if options.output:
            write_atomically(options.output, config.to_yaml())
        else:
            sys.stdout.write(config.to_yaml())
    except (ConfigError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
