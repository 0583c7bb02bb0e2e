"""Directories that appear as a whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from training import files
from training.files import mirror, sha256_of


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory of two files."""
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "large").write_bytes(bytes(range(256)) * 5000)
    (directory / "small").write_text("2")
    return directory


def hashes_of(directory: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in directory.iterdir()}


def names_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_a_copy_is_equal_and_has_what_was_named(source, tmp_path):
    (source / "not named").write_text("3")
    named = {name: digest for name, digest in hashes_of(source).items() if name != "not named"}
    mirror(source, tmp_path / "deep/target", named)
    assert hashes_of(tmp_path / "deep/target") == named
    assert names_below(tmp_path / "deep") == ["target", "target/large", "target/small"]


def test_what_was_there_is_replaced(source, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("1")
    mirror(source, target, hashes_of(source))
    assert names_below(target) == ["large", "small"]


def test_a_damaged_source_is_an_error_and_leaves_the_old_target(source, tmp_path):
    target = tmp_path / "deep/target"
    hashes = hashes_of(source)
    mirror(source, target, hashes)
    (source / "small").write_text("3")
    with pytest.raises(ValueError, match=r"source/small: does not match its hash"):
        mirror(source, target, hashes)
    assert (target / "small").read_text() == "2"
    assert names_below(target.parent) == ["target", "target/large", "target/small"]


def test_a_missing_file_is_an_error_and_nothing_appears(source, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        mirror(source, tmp_path / "deep/target", hashes_of(source) | {"absent": "0"})
    assert not (tmp_path / "deep").exists()


def test_the_source_may_go_while_it_is_copied(source, tmp_path, monkeypatch):
    hashes = hashes_of(source)
    copy = files.shutil.copyfileobj

    def copy_after_removal(*arguments: object) -> None:
        files.remove_directory(source)
        copy(*arguments)

    monkeypatch.setattr(files.shutil, "copyfileobj", copy_after_removal)
    mirror(source, tmp_path / "target", hashes)
    assert hashes_of(tmp_path / "target") == hashes


def test_a_failing_disk_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        mirror(source, tmp_path / "deep/target", hashes_of(source))
    assert names_below(tmp_path / "deep") == []
