"""The environment does not change under a job, and what is the owner's stays: uv, conda, and an environment."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from rendering import task

# In place of uv: what would change, and what was asked of it.
UV = """\
#!/bin/sh
echo "$@" >> {calls}
case "$*" in *--dry-run*) echo "{said}" >&2 ;; esac
"""
SETTINGS = {"python_env_packages_path": "", "python_env_fetcher": "node1", "inventory_hostname": "node1"}
SETTINGS |= {"ansible_check_mode": False}


@pytest.fixture
def sync(tmp_path):
    """sync(said, jobs): the task's own command, where uv says that of a dry run; what became of it."""

    def run(said: str, jobs: list[str]) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        calls = tmp_path / "calls"
        calls.write_text("")
        (tmp_path / "uv/bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / "uv/bin/uv").write_text(UV.format(calls=calls, said=said))
        (tmp_path / "uv/bin/uv").chmod(0o755)
        paths = {"python_env_root": str(tmp_path), "python_env_uv_path": f"{tmp_path}/uv", "python_env_path": "/env"}
        command = task(
            "python_env", "sync", "Make the environment equal to the lock", **SETTINGS | paths, python_env_jobs=jobs
        )
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30)
        return done, calls.read_text().splitlines()

    return run


def test_packages_change_where_nothing_runs(sync):
    done, calls = sync("Would install 2 packages", [])
    assert done.returncode == 0 and len(calls) == 1 and "--dry-run" not in calls[0]


def test_packages_do_not_change_under_a_job(sync, tmp_path):
    done, calls = sync("Would install 2 packages", ["demo", "other"])
    assert done.returncode == 1 and all("--dry-run" in call for call in calls)
    assert (
        "would change under demo, other: stop it first (ansible-playbook playbooks/stop.yml -e job=demo)" in done.stderr
    )
    assert not (tmp_path / "installing").exists(), "or the next run would install all of it again"
    done, calls = sync("Would make no changes", ["demo"])
    assert done.returncode == 0 and len(calls) == 2, "what is as it should be is no reason to refuse"


def installed(place: Path, jobs: list[str]) -> subprocess.CompletedProcess[str]:
    """The first lines of the task that installs uv, up to Python's own."""
    paths = {"python_env_uv_path": str(place), "python_env_root": str(place.parent), "__python_env_uv_mark": "/mark"}
    text = task("python_env", "installer", "Install uv", **SETTINGS | paths, python_env_jobs=jobs)
    first = text.partition("python3 -m venv")[0]
    return subprocess.run(["sh", "-c", first], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("there", ["nothing", "ours", "half of ours", "the owner's"])
def test_uv_is_installed_in_a_place_that_is_free_or_ours(there, tmp_path):
    place = tmp_path / "uv"
    if there != "nothing":
        place.mkdir()
        (place / ("complete-0123" if there == "ours" else "bin")).touch()
    if there == "half of ours":
        Path(f"{place}.making").touch()
    done = installed(place, [])
    if there == "the owner's":
        assert done.returncode == 1 and "not made by Minos" in done.stderr and (place / "bin").exists()
    else:
        assert done.returncode == 0 and not place.exists() and Path(f"{place}.making").exists()


def test_uv_does_not_change_under_a_job(tmp_path):
    (tmp_path / "uv").mkdir()
    (tmp_path / "uv/complete-0123").touch()
    done = installed(tmp_path / "uv", ["demo"])
    assert done.returncode == 1 and "under demo" in done.stderr and (tmp_path / "uv/complete-0123").exists()


def test_a_reset_takes_the_installers_that_are_ours_and_no_others(tmp_path):
    """site.yml has refused to install into a conda of the owner's; then he gives up, and resets."""
    ours, theirs = tmp_path / "uv", tmp_path / "conda"
    for place in (ours, theirs):
        place.mkdir()
    (ours / "complete-0123").touch()
    (theirs / "envs").mkdir()
    paths = {"python_env_uv_path": str(ours), "python_env_conda_path": str(theirs)}
    command = task("python_env", "reset", "See which of the installers are ours", **SETTINGS | paths)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines() == [str(ours)]
    Path(f"{theirs}.making").touch()
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines() == [str(ours), str(theirs)], "what broke off half-way is ours, too"
