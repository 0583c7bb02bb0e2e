"""The fault matrix: what is done to disks and files, and its data."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.faults import data
from tests.faults.disks import SHRINK
from tests.faults.processes import FLIP, TRUNCATE, damage


def test_a_disk_is_full_without_being_filled_and_has_room_again(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(tmp_path)]
    if (mounted := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"needs root to mount a small disk: {mounted.stderr.strip()}")
    try:
        (tmp_path / "file").write_bytes(bytes(3 << 20))
        subprocess.run(["sh", "-c", SHRINK.format(path=tmp_path)], check=True)
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "more").write_bytes(bytes(1 << 20))
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path)], check=True)
        (tmp_path / "more").write_bytes(bytes(1 << 20))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_damage_shows_in_the_content_alone(tmp_path):
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        file.write_bytes(bytes(4000))
        os.utime(file, ns=(10**18, 10**18))
    subprocess.run(["sh", "-c", damage(f"echo {files[0]}", FLIP)], check=True)
    subprocess.run(["sh", "-c", damage(f"echo {files[1]}", TRUNCATE)], check=True)
    assert files[0].read_bytes() == bytes(2000) + b"\xff" + bytes(1999)
    assert files[1].read_bytes() == bytes(3000)
    assert [file.stat().st_mtime_ns for file in files] == [10**18, 10**18]


def test_the_data_are_the_same_each_time(tmp_path):
    data.make(tmp_path / "one")
    data.make(tmp_path / "two")
    assert (tmp_path / "one/train.jsonl").read_bytes() == (tmp_path / "two/train.jsonl").read_bytes()
    assert len((tmp_path / "one/heldout.jsonl").read_text().splitlines()) == data.ROWS["heldout.jsonl"]
