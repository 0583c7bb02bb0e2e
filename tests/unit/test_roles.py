"""Every role says what it takes, and its defaults and its specification agree."""

import pytest
import yaml
from paths import ROLES

WITH_OPTIONS = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def options(role):
    spec = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]
    return spec, spec["options"]


def defaults(role):
    return yaml.safe_load((role / "defaults/main.yml").read_text()) or {}


@WITH_OPTIONS
def test_defaults_equal_the_specification(role):
    documented = {name: option["default"] for name, option in options(role)[1].items() if "default" in option}
    required = {name for name, option in options(role)[1].items() if option.get("required")}
    assert {name: value for name, value in defaults(role).items() if name not in required} == documented


@WITH_OPTIONS
def test_every_option_is_typed_and_described(role):
    spec, every = options(role)
    assert spec["short_description"]
    for name, option in every.items():
        assert name.startswith(f"{role.name}_"), name
        assert option["type"] and option["description"], name
        assert option.get("required") or "default" in option, name


@WITH_OPTIONS
def test_tasks_files_are_short(role):
    for file in (role / "tasks").glob("*.yml"):
        assert len(file.read_text().splitlines()) <= 120, file


@WITH_OPTIONS
def test_every_templates_first_line_says_who_manages_it(role):
    for template in (role / "templates").glob("*.j2"):
        text = template.read_text()
        if template.name in {"known_hosts.j2", "plan.j2"}:  # parts of a file, and text for the screen
            continue
        assert "{{ ansible_managed | comment" in "\n".join(text.splitlines()[:2]), template


def test_group_vars_only_set_options_that_exist():
    known = {name for role in ROLES for name in options(role)[1]}
    shared = yaml.safe_load((ROLES[0].parents[1] / "inventory/group_vars/all.yml").read_text())
    prefixes = tuple(f"{role.name}_" for role in ROLES)
    mapped = {name for name in shared if name.startswith(prefixes)} - {
        "rendezvous_port",
        "cluster_hosts_members",
    }
    assert mapped - known == set()
