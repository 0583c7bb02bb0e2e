"""make says in one line what the machine that one types on lacks."""

import os
import shutil
import subprocess

import pytest
from paths import ROOT

# As typed in a shell. By `make test` this make would get that one's flags, and say which folder it enters and leaves.
SHELL = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}

# In place of python3, because an old one cannot be installed here: it answers as one would, up to the step that fails.
OLD = """\
#!/bin/sh
case "$*" in
*version_info*) exit {old} ;;
--version) echo Python {version} ;;
*"lab.uv venv"*) echo "error: No interpreter found" >&2; exit 2 ;;
esac
"""
WITHOUT = {
    "an old Python": ("3.8.10", 1, "This needs python3 3.10 or newer to begin with, and Python 3.8.10 is what answers"),
    "Ubuntu 22.04 offline": ("3.10.12", 0, "Ansible needs Python 3.11, which is not here (Python 3.10.12 is)"),
}


@pytest.mark.parametrize(("version", "old", "message"), WITHOUT.values(), ids=WITHOUT)
def test_a_python_that_will_not_do_is_one_line(version, old, message, tmp_path):
    for name in ("Makefile", "requirements-control.txt", "roles/python_env/files/uv.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "bin/python3"
    python.parent.mkdir()
    python.write_text(OLD.format(old=old, version=version))
    python.chmod(0o755)
    if not old:  # the installer itself is there
        (tmp_path / ".venv-uv/bin").mkdir(parents=True)
        (tmp_path / ".venv-uv/bin/uv").touch()
    environment = SHELL | {"PATH": f"{python.parent}:/usr/bin:/bin"}
    done = subprocess.run(["make", "venv"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if message in line]
    assert done.returncode == 2 and len(said) == 1
    assert "Ubuntu 22.04" in said[0], "it says what to do"
    assert not (tmp_path / ".venv/.control").exists()


def test_the_verbs_have_short_names():
    def typed(*arguments: str) -> str:
        command = ["make", "--dry-run", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=SHELL, capture_output=True, text=True, timeout=60)
        return " ".join(done.stdout.split("\n")[-2].split()) if done.returncode == 0 else done.stderr

    assert typed("status") == ".venv/bin/ansible-playbook playbooks/status.yml"
    given = ("JOB=demo", "INVENTORY=inventory/lab", "ARGS=-e lines=50")
    assert typed("logs", *given) == (
        ".venv/bin/ansible-playbook -i inventory/lab playbooks/logs.yml -e job=demo -e lines=50"
    )
    assert typed("export") == ".venv/bin/ansible-playbook playbooks/export.yml", "not make's own word"
    asked = subprocess.run(["make", "help"], cwd=ROOT, env=SHELL, capture_output=True, text=True, timeout=60)
    verbs = asked.stdout
    line = next(each for each in verbs.splitlines() if "status watch" in each)
    assert all((ROOT / f"playbooks/{verb}.yml").exists() for verb in line.split()[1:])
    assert "No rule to make target" in typed("clean")
