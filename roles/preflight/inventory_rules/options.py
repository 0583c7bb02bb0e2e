"""What variables there are, read from where they are documented: the roles' specifications and the shared variables."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.constants import INTERNAL_STATIC_VARS
from jinja2 import Environment, nodes
from yaml import CSafeLoader as Loader

ROOT = Path(__file__).parents[3]
ROLES = ROOT / "roles"
SHARED = ROOT / "inventory" / "group_vars" / "all.yml"
# Read by tests/nodes alone, from inventories that have somebody who is no member.
OTHERS = {"outsider_command", "minos_inventory_ready"}
JINJAS = {"dict", "lookup", "query"}
# Not in all.yml, because they differ from machine to machine; after -e they would be for all.
OF_MACHINES = {"first_contact", "lan_interface"}


def role_options() -> dict[str, Mapping[str, Any]]:
    """Map every option of every role to its specification."""
    options: dict[str, Mapping[str, Any]] = {}
    for file in sorted(ROLES.glob("*/meta/argument_specs.yml")):
        options |= yaml.load(file.read_text(), Loader)["argument_specs"]["main"]["options"]
    return options


def known_names(options: Mapping[str, Any]) -> set[str]:
    """Return all names: options, the shared variables, and what those refer to (such as lan_interface)."""
    shared = yaml.load(SHARED.read_text(), Loader)
    return {*options, *shared, *OTHERS, *referred_to(shared)}


def referred_to(shared: Mapping[str, Any]) -> Iterator[str]:
    environment = Environment()
    for value in shared.values():
        if isinstance(value, str) and "{{" in value:
            names = {node.name for node in environment.parse(value).find_all(nodes.Name)}
            yield from names - INTERNAL_STATIC_VARS


def words_of_commands() -> set[str]:
    """Return what means something after -e alone, to train.yml or to one of the verbs."""
    shared = yaml.load(SHARED.read_text(), Loader)
    others = {*shared, *role_options(), *JINJAS, *OF_MACHINES}
    return {name for name in referred_to(shared) if name not in others and not name.startswith(("_", "ansible_"))}


def names_in_files(typed: Iterable[str], loader: Any) -> set[str]:
    """Return the names that `-e @FILE` brings, such as a vault's; `typed` is each -e as it was typed."""
    files = [each[1:] for each in typed if each.startswith("@")]
    return {str(name) for file in files for name in loader.load_from_file(file) or {}}


def owners(names: Iterable[str], known: Collection[str]) -> set[str]:
    """Return those of such names that are nobody's mistake: nothing here has them, nor one that is nearly the same."""
    return {name for name in names if name not in known and not difflib.get_close_matches(name, known, 1, 0.75)}


def prefixes() -> tuple[str, ...]:
    """Return how our names begin. A role's variables all begin with its name."""
    return ("cluster_", "minos_", *(f"{path.name}_" for path in sorted(ROLES.iterdir()) if path.is_dir()))
