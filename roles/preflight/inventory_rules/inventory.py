"""What the rules read: groups, members, each value as the roles will get it, and where it was written.

Ansible marks what it loads with its file and line. That is all the rules know of Ansible's insides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible._internal._datatag._tags import Origin
from ansible.constants import INTERNAL_STATIC_VARS
from ansible.errors import AnsibleError
from ansible.template import Templar
from ansible.vars.hostvars import HostVars


class Inventory:
    """The hosts of group `cluster`, with a cache: Ansible works a host's variables out anew at every question."""

    def __init__(self, hostvars: HostVars, groups: Mapping[str, list[str]], sources: Sequence[str], loader: Any):
        self.groups = groups
        self.members = list(groups.get("cluster", []))
        self.sources = ", ".join(map(short, sources)) or "the inventory"
        paths = [Path(source).resolve() for source in sources]
        self.folders = list(dict.fromkeys(path if path.is_dir() else path.parent for path in paths))
        """Where the inventory's files lie, and group_vars and host_vars beside them."""
        self._loader = loader
        self._files: dict[tuple[str, str], Mapping[str, Any]] = {}
        self.raw = {name: hostvars.raw_get(name) for name in self.members}
        self._manager = hostvars._inventory
        self._templars = {
            name: Templar(loader, {**raw, "hostvars": hostvars, "groups": groups}) for name, raw in self.raw.items()
        }
        shared = [self._origin(name, "minos_shared_vars") for name in self.members[:1]]
        self._shared_file = shared[0].path if shared and shared[0] else None
        self._written = {
            name: [variable for variable in raw if self._is_the_owners(name, variable)]
            for name, raw in self.raw.items()
        }

    def resolve(self, host: str, name: str) -> Any:
        """Return a value as the roles get it. KeyError: there is none; AnsibleError: it refers to nothing."""
        return self._templars[host].template(self.raw[host][name])

    def get(self, host: str, name: str) -> Any:
        """Return the value, or None where there is none to judge: what cannot be worked out has a rule of its own."""
        try:
            return self.resolve(host, name)
        except (KeyError, AnsibleError):
            return None

    def each(self, name: str) -> Iterator[tuple[str, Any]]:
        """Yield members and their values of a variable, those that have one."""
        for host in self.members:
            value = self.get(host, name)
            if value is not None:
                yield host, value

    def written(self, host: str) -> list[str]:
        """Return the variables of a member that the owner has written, in the inventory, beside it or with -e."""
        return self._written[host]

    def at(self, host: str, name: str) -> str:
        """Say where a variable of a member was written: file and line, and the member where it is not for all."""
        # A script's output has no lines: there only equal values are one for all.
        written = {
            (str(origin), "" if origin and origin.line_num else str(self.raw[other].get(name)))
            for other in self.members
            for origin in [self._origin(other, name)]
        }
        whose = "" if len(written) == 1 and name in self.raw[host] else f"{host}: "
        return f"{self._place(self._origin(host, name))}: {whose}"

    def at_host(self, host: str) -> str:
        """Say where a member is named."""
        known = self._manager.get_host(host)
        return f"{self._place(Origin.get_tag(known.name) if known else None)}: {host}: "

    def path_of(self, host: str, name: str) -> Path | None:
        origin = self._origin(host, name)
        return Path(origin.path) if origin and origin.path else None

    def _is_the_owners(self, host: str, name: str) -> bool:
        if name in INTERNAL_STATIC_VARS:  # Ansible keeps some of its own beside the owner's
            return False
        origin = self._origin(host, name)
        if origin:
            return origin.path is None or origin.path != self._shared_file
        return any(name in scope for scope in self._scopes(host))

    def _scopes(self, host: str) -> Iterator[Mapping[str, Any]]:
        """Yield the variables of the inventory and of the files beside it, the strongest first."""
        known = self._manager.get_host(host)
        yield self._beside("host_vars", host)
        yield known.vars
        groups = sorted(known.get_groups(), key=lambda group: (group.depth, group.priority, group.name), reverse=True)
        for group in groups:
            if group.name != "all":
                yield self._beside("group_vars", group.name)
            yield group.vars
        yield self._beside("group_vars", "all")  # ansible.cfg makes these the weakest

    def _beside(self, kind: str, name: str) -> Mapping[str, Any]:
        """Return what a host or a group has in files of its own, read as Ansible has read them."""
        if (kind, name) not in self._files:
            files = [file for folder in self.folders for file in self._loader.find_vars_files(str(folder / kind), name)]
            found = [self._loader.load_from_file(file, cache="all", unsafe=True) or {} for file in files]
            self._files[kind, name] = {key: value for data in found for key, value in data.items()}
        return self._files[kind, name]

    def _origin(self, host: str, name: str) -> Origin | None:
        """Return file and line. A value carries them; true, false and nothing cannot, but their names do."""
        raw = self.raw[host]
        if name not in raw:
            return None
        if origin := Origin.get_tag(raw[name]):
            return origin
        for scope in [*self._scopes(host), raw]:
            for key in scope:
                if key == name:
                    return Origin.get_tag(key)
        return None

    def _place(self, origin: Origin | None) -> str:
        if origin is None:
            return self.sources
        if origin.path is None:
            script = re.fullmatch(r"<inventory script output from '(.+)'>", origin.description)
            return short(script[1]) if script else origin.description.strip("<>")
        line = f":{origin.line_num}" if origin.line_num else ""
        return f"{short(origin.path)}{line}"


def short(path: str) -> str:
    """Return a path as one would type it here."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def in_quotes(name: str, value: Any) -> str:
    """Say how to write a list, or names with values, that came as a text: an INI file and -e want quotes in it."""
    try:
        meant = yaml.safe_load(value) if isinstance(value, str) and value.strip()[:1] in ("[", "{") else None
    except yaml.YAMLError:
        meant = None
    if not isinstance(meant, list | dict):
        return ""
    return f"write {meant} in an INI file, or after -e '{json.dumps({name: meant})}'"


def shown(value: Any) -> str:
    """Return a value as it appears in a message, always one line."""
    return f"'{value}'".replace("\n", " ")
