"""The locks hold what pyproject.toml asks for, with hashes, and agree with each other."""

import re
import tomllib

import pytest
from paths import ROOT

LOCKS = {
    "control": "requirements-control.txt",
    "openstack": "requirements-openstack.txt",
    "training": "training/requirements-cpu.txt",
    "training-cuda": "training/requirements-cuda.txt",
    "training-unsloth": "training/requirements-unsloth.txt",
    "dev": "requirements-dev.txt",
    "benchmarks": "benchmarks/requirements.txt",
}
GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]


def asked(group):
    """Pinned name -> version of a group and the groups that it includes; a name without a pin maps to None."""
    found = {}
    for entry in GROUPS[group]:
        if isinstance(entry, dict):
            found |= asked(entry["include-group"])
        else:
            name, _, version = entry.partition("==")
            found[name] = version or None
    return found


def locked(file):
    """Name -> version of a lock."""
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", (ROOT / file).read_text(), re.MULTILINE))


@pytest.mark.parametrize(("group", "file"), LOCKS.items(), ids=LOCKS)
def test_the_lock_holds_what_is_asked_for(group, file):
    have = locked(file)
    for name, version in asked(group).items():
        assert name in have, f"{name} is not in {file}: make lock"
        assert version in (None, have[name].partition("+")[0]), f"{name} in {file}: make lock"


@pytest.mark.parametrize("file", [*LOCKS.values(), "roles/python_env/files/uv.txt"])
def test_every_package_has_a_hash(file):
    for entry in re.split(r"\n(?=\S)", (ROOT / file).read_text().strip()):
        assert entry.startswith("#") or "--hash=sha256:" in entry, entry.splitlines()[0]


def test_the_locks_agree():
    """One version of a package, whichever lock it comes from (CUDA's own packages aside)."""
    dev = locked("requirements-dev.txt")
    for file in (
        "requirements-control.txt",
        "requirements-openstack.txt",
        "training/requirements-cpu.txt",
        "benchmarks/requirements.txt",
    ):
        have = locked(file)
        assert {name: have[name] for name in have.keys() & dev.keys() if dev[name] != have[name]} == {}
    assert locked("requirements-control.txt").keys() | locked("training/requirements-cpu.txt").keys() <= dev.keys()
    cuda = locked("training/requirements-cuda.txt")
    for name, version in locked("training/requirements-cpu.txt").items():
        assert cuda[name] == version.partition("+")[0], name
