"""python_env: on every node exactly what the lock says."""

import json
import re
from pathlib import Path

LOCKS = Path(__file__).parents[2] / "training"
INSTALLED = """
import importlib.metadata, json, re
print(json.dumps({re.sub("[-_.]+", "-", d.metadata["Name"]).lower(): d.version
                  for d in importlib.metadata.distributions()}))
"""


def locked(variant):
    text = (LOCKS / f"requirements-{variant}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", text, re.MULTILINE))


def test_python_env_has_every_package_of_the_lock_and_no_other(host, told):
    installed = json.loads(host.check_output("%s/bin/python -I -c %s", told.env_path, INSTALLED))
    assert installed == locked(told.variant)


def test_python_env_torch_imports_as_locked(host, told):
    """The code, not only its description."""
    script = "import sys, torch; print(sys.version_info[:2], torch.__version__)"
    version = locked(told.variant)["torch"]
    printed = host.check_output("runuser -u %s -- %s/bin/python -I -c %s", told.user, told.env_path, script)
    assert printed.split(") ")[0] == "(3, 11"
    assert printed.split(") ")[1].split("+")[0] == version.split("+")[0]


def test_python_env_belongs_to_root(host, told):
    """The account that runs people's training code cannot change what the next job runs."""
    assert host.file(f"{told.env_path}/bin/python").user == "root"
    assert host.run("runuser -u %s -- test -w %s/lib", told.user, told.env_path).rc == 1
