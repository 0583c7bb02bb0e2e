"""What variables there are, read from where they are documented: the roles' specifications and the shared variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def prefixes() -> tuple[str, ...]:
    """Return how our names begin. A role's variables all begin with its name."""
    return ("cluster_", "minos_", *(f"{path.name}_" for path in sorted(ROLES.iterdir()) if path.is_dir()))
