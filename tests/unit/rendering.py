"""Render what a role would write, by Ansible's own templating, without a node."""

from __future__ import annotations

from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from paths import ROOT

SHARED = yaml.safe_load((ROOT / "inventory/group_vars/all.yml").read_text())


def _trusted(value: Any) -> Any:
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, dict):
        return {key: _trusted(each) for key, each in value.items()}
    return [_trusted(each) for each in value] if isinstance(value, list) else value


def templar(role: str, **variables: Any) -> Templar:
    """Ansible's templating with the role's own variables, and `variables` over its defaults."""
    layers = {"ansible_managed": "Ansible managed"}
    for folder in ("defaults", "vars"):
        if (file := ROOT / "roles" / role / folder / "main.yml").exists():
            layers |= _trusted(yaml.safe_load(file.read_text()) or {})
    return Templar(DataLoader(), layers | variables)


def rendered(role: str, template: str, **variables: Any) -> str:
    """The text of roles/<role>/templates/<template>."""
    text = (ROOT / "roles" / role / "templates" / template).read_text()
    return templar(role, **variables).template(trust_as_template("#jinja2: trim_blocks: True\n" + text))


def evaluated(role: str, name: str, **variables: Any) -> Any:
    """The value of one of the role's variables."""
    return templar(role, **variables).template(trust_as_template("{{ " + name + " }}"))


def _task(role: str, file: str, name: str) -> dict[str, Any]:
    tasks = yaml.safe_load((ROOT / "roles" / role / "tasks" / f"{file}.yml").read_text())
    (found,) = (each for each in tasks if each["name"] == name)
    return found


def asserted(role: str, file: str, name: str, **variables: Any) -> bool:
    """Whether a task of roles/<role>/tasks/<file>.yml that refuses something lets this pass."""
    found = _task(role, file, name)
    told = templar(role, **variables, **_trusted(found.get("vars", {})))
    that = found["ansible.builtin.assert"]["that"]
    conditions = [that] if isinstance(that, str) else that
    return all(told.template(trust_as_template("{{ " + each + " }}")) for each in conditions)


def happens(role: str, file: str, name: str, **variables: Any) -> bool:
    """Whether a task of roles/<role>/tasks/<file>.yml is done: all its conditions, none behind the first that fails."""
    told, when = templar(role, **variables), _task(role, file, name)["when"]
    conditions = [when] if isinstance(when, str) else when
    return all(told.template(trust_as_template("{{ " + each + " }}")) for each in conditions)


def task(role: str, file: str, name: str, **variables: Any) -> Any:
    """The command, or the loop of a task without one, of roles/<role>/tasks/<file>.yml as a node would get it."""
    found = _task(role, file, name)
    told = found.get("ansible.builtin.shell") or found["loop"]
    text = told["cmd"] if isinstance(told, dict) else told
    return templar(role, **variables).template(trust_as_template("#jinja2: trim_blocks: True\n" + text))


def shared(name: str, host: str, hosts: dict[str, str], groups: dict[str, list[str]], **variables: Any) -> Any:
    """The value of a shared variable for `host`; `hosts` maps the members to their addresses."""
    layers = _trusted(SHARED) | variables
    hostvars = {each: {"cluster_ip": address, "ansible_host": address} for each, address in hosts.items()}
    layers |= {"groups": {"cluster": list(hosts), **groups}, "hostvars": hostvars, "inventory_hostname": host}
    layers |= {"cluster_ip": hosts[host]}
    return Templar(DataLoader(), layers).template(trust_as_template("{{ " + name + " }}"))
