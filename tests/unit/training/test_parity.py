"""In what nodes differ is found and told apart from what may differ."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from training import parity
from training.parity import compare, describe

ROOT = Path(__file__).parents[3]
SAME = {"python": "3.11.9 CPython x86_64", "package numpy": "2.4.6 aa", "code finetune.py": "11", "config": "33"}


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A place for packages, with one package in it."""
    folder = tmp_path / "packages" / "thing-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: Thing\nVersion: 1.0\n")
    (folder / "RECORD").write_text("thing.py,sha256=abc,10\nthing-1.0.dist-info/INSTALLER,sha256=x,2\n")
    monkeypatch.setattr(parity.sysconfig, "get_path", lambda _: str(folder.parent))
    return folder


def test_equal_nodes_are_equal():
    assert compare({"node1": SAME, "node2": dict(SAME), "node3": dict(SAME)}) == ("", [])


def test_each_node_is_named_with_what_differs_there():
    sentence, table = compare(
        {
            "node1": SAME,
            "node2": SAME | {"package numpy": "2.4.5 bb"},
            "node3": SAME | {"code finetune.py": "12"},
            "node4": SAME | {"config": "34", "package numpy": "2.4.5 bb"},
        }
    )
    assert sentence == ("node2, node3, node4 do not run the same as node1: package numpy, code finetune.py, config")
    assert table[:2] == [f"{'':13}  node1     node2", "package numpy  2.4.6 aa  2.4.5 bb"]
    assert sum("node1" in line for line in table) == 3


def test_what_one_of_them_lacks_is_a_difference():
    sentence, table = compare({"a": SAME, "b": {"package new": "1", **SAME}})
    assert sentence == "b does not run the same as a: package new"
    assert table[1].split() == ["package", "new", "-", "1"]
    assert compare({"a": {"package new": "1", **SAME}, "b": SAME})[1][1].split() == ["package", "new", "1", "-"]


def test_a_node_without_a_gpu_has_no_driver_to_compare():
    with_driver = SAME | {"driver": "580.1"}
    assert compare({"head": SAME, "node1": with_driver, "node2": with_driver}) == ("", [])
    sentence, table = compare({"head": SAME, "node1": with_driver, "node2": SAME | {"driver": "570.2"}})
    assert sentence == "node2 does not run the same as head: driver"
    assert table[1] == "driver  580.1 on node1  570.2"


def test_distributions_may_differ_in_the_last_number_of_python(monkeypatch):
    monkeypatch.setattr(parity.platform, "python_version_tuple", lambda: ("3", "11", "2"))
    debian = describe()["python"]
    monkeypatch.setattr(parity.platform, "python_version_tuple", lambda: ("3", "11", "15"))
    assert describe()["python"] == debian
    monkeypatch.setattr(parity.platform, "python_version_tuple", lambda: ("3", "12", "2"))
    assert describe()["python"] != debian


def test_two_wholly_different_nodes_do_not_flood_the_screen():
    other = {f"package p{number}": "1" for number in range(60)}
    sentence, table = compare({"a": SAME, "b": SAME | other, "c": SAME | other})
    assert sentence == "b, c do not run the same as a: package p0, package p1, package p2 and 57 more"
    assert len(table) == 22
    assert table[-1] == "and 40 more"


def test_a_package_counts_by_its_files_and_not_by_who_installed_it(environment):
    before = describe()["package thing"]
    assert before.startswith("1.0 ")
    record = environment / "RECORD"
    record.write_text(
        "thing.py,sha256=abc,10\n../../../bin/thing,sha256=y,9\nthing-1.0.dist-info/INSTALLER,sha256=z,3\n"
        "__pycache__/thing.cpython-311.pyc,,\n"
    )
    assert describe()["package thing"] == before
    record.write_text("thing.py,sha256=abd,10\n")
    assert describe()["package thing"] != before, "the same version, but other files: a build of one's own"


def test_what_a_process_has_put_on_its_path_meanwhile_does_not_count(environment, tmp_path, monkeypatch):
    shutil.copytree(environment, tmp_path / "vendored" / "other-2.0.dist-info")
    before = describe()
    monkeypatch.syspath_prepend(str(tmp_path / "vendored"))
    assert describe() == before


def test_code_counts_to_the_byte(tmp_path):
    code = shutil.copytree(ROOT / "training", tmp_path / "training", ignore=shutil.ignore_patterns("__pycache__"))
    before = describe(code=code)
    assert "code data/order.py" in before
    with (code / "data/order.py").open("a") as file:
        file.write("\n")
    after = describe(code=code)
    assert [what for what in after if after[what] != before[what]] == ["code data/order.py"]


def test_driver_and_cuda_are_read_where_they_are(tmp_path, monkeypatch):
    driver = tmp_path / "version"
    driver.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (builder)  Sep 2025\n"
    )
    monkeypatch.setattr(parity, "DRIVER", driver)
    torch = tmp_path / "torch"
    torch.mkdir()
    (torch / "__init__.py").touch()
    (torch / "version.py").write_text("from typing import Optional\ncuda: Optional[str] = '13.0'\nhip = None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    facts = describe()
    assert (facts["driver"], facts["cuda"]) == ("580.95.05", "13.0")


def test_it_runs_from_standard_input_as_it_is_sent_to_nodes(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("lr: 1\n")
    command = [sys.executable, "-", "--code", str(ROOT / "training"), "--config", str(config)]
    source = (ROOT / "training/parity.py").read_text()
    done = subprocess.run(command, cwd=tmp_path, input=source, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == describe(code=ROOT / "training", config=config)
