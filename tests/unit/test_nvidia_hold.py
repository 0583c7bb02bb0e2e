"""nvidia: what is held is written down in every language, and let go again."""

import os
import subprocess

import pytest
from rendering import task

INSTALLED = "ii linux-image-amd64\nii nvidia-driver\nii bash\nrc nvidia-kernel-dkms"
APT_MARK = """
if [ "$1" = unhold ] && [ $# = 1 ]; then echo 'E: No packages found' >&2; exit 100; fi
shift
for each; do
  if [ "$LC_ALL" != C ]; then echo "$each auf Halten gesetzt."
  elif [ "$each" = linux-image-amd64 ]; then echo "$each was already set on hold."
  else echo "$each set on hold."; fi
done
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """dpkg-query and apt-mark are stand-ins: the latter speaks German, and the owner has held the kernel himself."""
    for name, script in {"dpkg-query": f"printf '%s\\n' '{INSTALLED}'", "apt-mark": APT_MARK}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    return tmp_path


def run(file: str, name: str, folder: str) -> str:
    command = task("nvidia", file, name).replace("/var/lib/minos-nvidia", folder)
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout


def test_what_nobody_held_before_is_written_down(machine):
    said = run("hold", "Hold what is not held yet", str(machine))
    assert said == (machine / "held").read_text() == "nvidia-driver\n"


@pytest.mark.parametrize("held", ["nvidia-driver\n", ""], ids=["some", "none"])
@pytest.mark.parametrize(
    ("file", "name"), [("hold", "Let go what was held"), ("reset", "Let driver and kernel be updated again")]
)
def test_it_is_let_go(file, name, held, machine):
    (machine / "held").write_text(held)
    run(file, name, str(machine))
    assert not (machine / "held").exists()
