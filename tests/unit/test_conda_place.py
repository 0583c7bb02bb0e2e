"""Where conda makes an environment: in a place that is empty or ours, never in its owner's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from rendering import task


def made(place: Path) -> subprocess.CompletedProcess[str]:
    """The first lines of the task, up to conda's own."""
    text = task("python_env", "conda", "Make the environment", python_env_path=str(place), python_env_fetcher="node1")
    first = text.partition('mkdir -p "$CONDA')[0]
    return subprocess.run(["sh", "-c", first], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "ours", "half of ours"])
def test_a_place_that_is_free_or_ours_is_made_empty(there, tmp_path):
    place = tmp_path / "a b/env"
    if there != "nothing":
        place.mkdir(parents=True)
    if there == "ours":
        (place / "made-by-conda-3.10").touch()
    if there == "half of ours":
        (place / "python").touch()
        Path(f"{place}.making").touch()
    done = made(place)
    assert done.returncode == 0, done.stderr
    assert not place.exists() and Path(f"{place}.making").exists()


def test_what_its_owner_keeps_there_is_refused_and_stays(tmp_path):
    place = tmp_path / "thesis"
    place.mkdir()
    (place / "chapter.txt").write_text("years of work")
    done = made(place)
    assert done.returncode == 1 and f"{place} is not empty, and not made by Minos" in done.stderr
    assert (place / "chapter.txt").read_text() == "years of work"
    assert not Path(f"{place}.making").exists(), "the next try would take it for ours"
