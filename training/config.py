"""From a YAML file plus `key=value` overrides to a checked Config, before anything else happens.

Needs PyYAML only, no torch: the control node checks a config with it before it touches any training node.

    python -m training.config FILE [key=value ...] [--output OUT.yaml]

prints (or writes) the complete effective config as sorted YAML and exits 0; a bad one exits 2 with one line.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import re
import sys
from pathlib import Path

import yaml

from training.errors import UserError
from training.files import write_atomically
from training.settings import Config

COMMAND_LINE = "command line"
# YAML 1.1 reads 3e-4 as text because it wants a dot and a signed exponent; people write it all the same.
NUMBER_WITH_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
# A config is copied to every node and into every checkpoint's record: no place for a secret.
TOKEN_KEYS = {"token", "hf_token", "hub_token", "huggingface_token", "huggingface_hub_token"}
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
EXAMPLES = {
    "int": "a whole number such as 10",
    "float": "a number such as 0.1",
    "str": "text; quote it",
    "bool": "true or false",
}


class ConfigError(UserError):
    """A setting that cannot be used; the message is one line with file, key and the fix."""

    def __init__(self, where: str, key: str, problem: str):
        place = f"{where}: {key}" if key else where
        super().__init__(f"{place}: {problem}")


def load(file: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read `file`, lay `key=value` overrides over it and check everything.

    Errors: ConfigError, one line that names the file (or the command line), the key and the fix.
    """
    values, origin, written = {}, {}, _read_yaml(Path(file))
    for key, value in written.items():
        values[key], origin[key] = _checked(str(file), key, value), str(file)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(COMMAND_LINE, override, "is not a setting; write key=value, such as steps=100")
        values[key], origin[key] = _checked(COMMAND_LINE, key, _from_text(key, text)), COMMAND_LINE
    # Whoever types other data would be shown a held-out loss on those of the file, the demo's for example.
    other_data = written.get("data_train", values.get("data_train")) != values.get("data_train")
    if other_data and values.get("data_heldout") and origin["data_heldout"] != COMMAND_LINE:
        fix = "write data_heldout=FILE there too, or data_heldout= to keep a tenth of the rows aside"
        problem = f"{values['data_heldout']!r} goes with the file's own data_train, not with that of the command line"
        raise ConfigError(str(file), "data_heldout", f"{problem}; {fix}")
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
    if str(key).lower() in TOKEN_KEYS or (isinstance(value, str) and TOKEN.search(value)):
        fix = "set HF_TOKEN in the environment (for train.yml: huggingface_token in a vault)"
        raise ConfigError(where, str(key), f"holds a token, which never belongs into a config; delete it and {fix}")
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
        want = EXAMPLES[wanted]
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
