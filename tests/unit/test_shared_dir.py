"""shared_dir: what it makes in a directory that is the owner's as well, and what of it a reset takes away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from ansible.template import trust_as_template
from paths import ROOT
from rendering import templar

FOLDERS = ["jobs", "models", "packages"]


@pytest.fixture
def share(tmp_path, monkeypatch) -> Path:
    """A directory with somebody's own file; the service user is whoever runs this."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/runuser").write_text('#!/bin/sh\nshift 3\nexec "$@"\n')
    (tmp_path / "bin/runuser").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "share").mkdir()
    (tmp_path / "share/photo").write_text("mine")
    return tmp_path / "share"


def commands(file: str, share: Path, *, as_root: tuple[str, ...] = (), **variables) -> dict[str, str]:
    """Run the commands of the role's tasks, once per item of their loop; what each task said."""
    said = {}
    known = {"shared_dir_path": str(share), "shared_dir_uid": os.getuid(), "shared_dir_gid": os.getgid()} | variables
    for task in yaml.safe_load((ROOT / f"roles/shared_dir/tasks/{file}.yml").read_text()):
        if not (told := task.get("ansible.builtin.shell")):
            continue
        items = templar("shared_dir").template(trust_as_template(task["loop"])) if "loop" in task else [None]
        for item in items:
            own = {key: trust_as_template(text) for key, text in task.get("vars", {}).items()}
            words = templar("shared_dir", **known, **own, item=item)
            told = told if isinstance(told, dict) else {"cmd": told}
            command = {key: words.template(trust_as_template(text)) for key, text in told.items()}
            if "creates" not in command or not Path(command["creates"]).exists():
                done = subprocess.run(
                    [*as_root, "sh", "-c", command["cmd"]], capture_output=True, text=True, timeout=60
                )
                assert done.returncode == 0, done.stderr
                said[task["name"]] = done.stdout
    return said


def given_back(share: Path, *, data: bool = False) -> list[str]:
    commands("reset", share, reset_data=data)
    ends = (path for path in share.rglob("*") if path.is_file() or not any(path.iterdir()))
    return sorted(str(path.relative_to(share)) for path in ends)


def test_what_we_made_goes_and_nothing_else(share):
    commands("main", share)
    assert [(share / name).stat().st_mode & 0o777 for name in FOLDERS] == [0o750, 0o750, 0o755]
    noted = (share / ".minos-shared").read_text().splitlines()[1:]
    assert noted == [f"made {name}" for name in FOLDERS], "root, who may be nobody there, has nothing to add"
    (share / "packages/wheels").mkdir()
    assert given_back(share) == ["photo"]


def test_root_makes_them_where_the_user_may_not(share):
    (share.parent / "bin/runuser").write_text("#!/bin/sh\ncase $* in *-w*) exit 0;; *) exit 1;; esac\n")
    commands("main", share)
    assert all((share / name).is_dir() for name in FOLDERS)
    assert given_back(share) == ["photo"]


NOBODY_THERE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")
"""Root without the right to enter what is others': as on a share with root_squash."""


@pytest.mark.skipif(os.geteuid() != 0, reason="gives the directory to another user")
def test_a_share_that_only_the_service_user_may_enter(share):
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        nas = Path(folder, "nas")
        nas.mkdir(mode=0o700)
        os.chown(nas, 2600, 2600)
        become = "exec setpriv --reuid=2600 --regid=2600 --clear-groups"
        (share.parent / "bin/runuser").write_text(f'#!/bin/sh\nshift 3\n{become} -- "$@"\n')
        assert subprocess.run([*NOBODY_THERE, "ls", nas], capture_output=True).returncode != 0
        user = {"shared_dir_uid": 2600, "shared_dir_gid": 2600, "as_root": NOBODY_THERE}
        first, second = commands("main", nas, **user), commands("main", nas, **user)
        made = "Mark the directory, and make the folders of jobs, models and packages"
        assert first[made].split("\n") == ["made .minos-shared", *(f"made {name}" for name in FOLDERS), ""]
        assert second[made] == "", "a second run changes nothing"
        mark = (nas / ".minos-shared").read_text()
        assert mark.splitlines()[1:] == [f"made {name}" for name in FOLDERS]
        assert first["Read the mark"] == second["Read the mark"] == mark


@pytest.mark.parametrize("own", FOLDERS)
def test_a_folder_that_was_there_stays_as_it_was(own, share):
    """The others are made all the same; and with data that are ours to remove, too."""
    (share / own).mkdir(mode=0o700)
    (share / own / "mine").write_text("years of work")
    commands("main", share)
    commands("main", share)
    assert all((share / name).is_dir() for name in FOLDERS)
    assert (share / own).stat().st_mode & 0o777 == 0o700
    assert given_back(share, data=True) == [f"{own}/mine", "photo"]


def test_jobs_stay_until_data_are_to_be_removed_and_are_known_as_ours_until_then(share):
    commands("main", share)
    (share / "jobs/one").mkdir()
    assert given_back(share) == [".minos-shared", "jobs/one", "photo"]
    commands("main", share)
    assert given_back(share, data=True) == ["photo"]


def test_what_nobody_wrote_down_stays(share):
    """Made by an older version, or the record is lost."""
    commands("main", share)
    (share / ".minos-shared").write_text("0123\n")
    (share / "packages/wheel").touch()
    assert given_back(share, data=True) == ["jobs", "models", "packages/wheel", "photo"]


def test_before_a_reset_only_what_we_made_is_said_to_go(share):
    (share / "models/own").mkdir(parents=True)
    commands("main", share)
    (share / "jobs/one").mkdir()
    asked = {"user": "nobody-of-ours", "shared": str(share), "state": "/not/there", "environment": "/not/there"}
    look = [sys.executable, str(ROOT / "roles/reset_ask/files/look.py"), json.dumps(asked)]
    found = json.loads(subprocess.run(look, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert (found["shared"]["names"], found["owners"]["names"]) == (["jobs/one"], ["models/own"])
    assert found["shared"]["answers"] and found["state"]["names"] == []
