"""What was typed behind `-e`."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from training.settings import Config

from .place import ROOT

# What `-e` takes besides the settings of the config and the variables of the inventory.
OPTIONS = {"nnodes", "nnodes_min", "node_grace", "group", "config", "job", "follow", "lan_interface"}
OPTIONS |= {"nproc_per_node", "omp_num_threads"}
OPTIONS |= {"script", "script_dir", "script_args", "requirements"}
OPTIONS |= {"output"}  # of playbooks/print.yml, and of the following
SWITCHES = {"nccl_debug"}
JOB_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


def known_names() -> set[str]:
    files = [ROOT / "inventory/group_vars/all.yml", *ROOT.glob("roles/*/defaults/main.yml")]
    settings = {field.name for field in dataclasses.fields(Config)}
    return settings | OPTIONS | SWITCHES | {name for file in files for name in yaml.safe_load(file.read_text())}


def overrides(given: Mapping[str, Any]) -> list[str]:
    """Return the settings of the config among the variables of `-e`, as key=value.

    ValueError for a name that nobody reads: `-e stesp=50` would otherwise train on without a word.
    """
    settings, known = {field.name for field in dataclasses.fields(Config)}, known_names()
    for name, value in given.items():
        if name == "_raw_params":  # what Ansible makes of the words behind a blank
            raise ValueError(
                f"-e ... {value}: a blank ends a value; quotes within the quotes keep it: -e \"script='my dir/a.py'\""
            )
        if name not in known and not name.startswith("ansible_"):
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean {near[0]}?"
                if near
                else f"train.yml takes {', '.join(sorted(OPTIONS | SWITCHES))}; or a setting"
            )
            raise ValueError(f"-e {name}: nothing has this name; {hint}")
        if name in SWITCHES and str(value).lower() not in ("true", "false"):
            raise ValueError(f"-e {name}={value}: write true or false")
    return [f"{name}={value}" for name, value in given.items() if name in settings]


def own_path(option: str, given: Any) -> Path:
    """A file, or for script_dir a folder, of this machine."""
    path = Path(str(given)).expanduser()
    path = (path if path.exists() else ROOT / path).resolve()
    wanted, there = ("folder", path.is_dir()) if option == "script_dir" else ("file", path.is_file())
    if not there:
        raise ValueError(f"{option}={given}: there is no {wanted} {path} on this machine")
    return path


def job_name(name: Any) -> str:
    """The name, if it can be one of a folder and of a unit; ValueError with the fix."""
    if not JOB_NAME.fullmatch(str(name)):
        raise ValueError(f"job={name}: write a name of small letters, digits, '-', '_' and '.', such as demo-2")
    return str(name)
