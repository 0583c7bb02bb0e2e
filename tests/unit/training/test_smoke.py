"""The checks of one machine: what they say on this one, and what of faults that are made here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from tests.unit.training.conftest import ROOT
from training.smoke import exchange, machine
from training.smoke.__main__ import main
from training.smoke.cards import bf16_tflops
from training.smoke.check import Check


def only(found) -> Check:
    (check,) = found
    return check


@pytest.mark.timeout(300)
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_machine_without_gpu(tmp_path):
    command = [sys.executable, "-m", "training.smoke", "--json", "--directory", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    content = json.loads(ended.stdout)
    checks = {check["name"]: check for check in content["checks"]}
    assert list(checks) == ["torch", "CUDA", "matrix product cpu", "memory cpu", "all-reduce gloo", "disk"]
    assert checks["CUDA"]["verdict"] == "skip" and "no NVIDIA driver" in checks["CUDA"]["figure"]
    assert {checks[name]["verdict"] for name in ("torch", "matrix product cpu", "memory cpu", "all-reduce gloo")} == {
        "ok"
    }
    assert float(checks["matrix product cpu"]["figure"].split()[0]) > 1  # GFLOP/s
    assert checks["all-reduce gloo"]["figure"].startswith("2 processes, ")
    assert content["failed"] is False and content["node"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cuda_build", "figure", "fix"),
    [
        (None, "a driver is loaded, torch is a CPU build", "install training/requirements-cuda.txt"),
        ("12.8", "a driver is loaded, torch sees no GPU", "nvidia-smi says why"),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_a_failure(cuda_build, figure, fix, tmp_path, monkeypatch):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Tue Jan 14 2025\n")
    monkeypatch.setattr(machine, "DRIVER", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda_build)
    check = only(machine.cuda())
    assert (check.verdict, check.figure) == ("fail", figure)
    assert check.fix.startswith(fix)


@pytest.mark.parametrize(("capability", "verdict"), [((8, 9), "ok"), ((7, 5), "warn")])
def test_cards_without_bf16_are_told_what_to_write(capability, verdict, tmp_path, monkeypatch):
    major, minor = capability
    card = SimpleNamespace(name="NVIDIA X", total_memory=2**34, major=major, minor=minor)
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n")
    monkeypatch.setattr(machine, "DRIVER", driver)
    monkeypatch.setattr(machine, "devices", lambda: [torch.device("cuda", 0)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    found, bf16 = machine.cuda()
    assert f"NVIDIA X, 16 GiB, capability {major}.{minor}" in found.figure
    assert found.figure.endswith("driver 570.86.15")
    assert bf16.verdict == verdict
    assert (bf16.fix == "write precision: fp32") is (verdict == "warn")


def test_a_device_that_computes_wrong_is_a_failure(monkeypatch):
    healthy = torch.Tensor.double
    monkeypatch.setattr(torch.Tensor, "double", lambda tensor: healthy(tensor) + 0.05)
    check = only(machine.matrix_product())
    assert check.verdict == "fail" and check.figure.startswith("relative error")


def test_memory_that_forgets_is_a_failure(monkeypatch):
    monkeypatch.setattr(machine, "GIB", 2**24)
    assert only(machine.memory()).verdict == "ok"
    pattern = torch.arange

    class Faulty:
        """What is written comes back with one bit changed."""

        def __init__(self, tensor):
            self.tensor = tensor

        def __add__(self, number):
            written = self.tensor + number
            written[5] ^= 1 << 7
            return written

        def __rsub__(self, other):
            return other - self.tensor

        def __getattr__(self, name):
            return getattr(self.tensor, name)

        def __ne__(self, other):
            return self.tensor != other

    monkeypatch.setattr(machine.torch, "arange", lambda *arguments, **keywords: Faulty(pattern(*arguments, **keywords)))
    check = only(machine.memory())
    assert check.verdict == "fail" and check.figure.startswith("1 of ")


def lost(rank: int, directory: str, backend: str, processes: int) -> None:
    if rank == 1:
        raise ConnectionError("no route")
    time.sleep(600)


def stuck(rank: int, directory: str, backend: str, processes: int) -> None:
    time.sleep(600)


@pytest.mark.timeout(120)
def test_an_exchange_that_hangs_or_breaks_is_a_failure(monkeypatch):
    monkeypatch.setattr(exchange, "STARTED_SECONDS", 0.5)
    monkeypatch.setattr(exchange, "_all_reduce", stuck)
    check = only(exchange.all_reduce())
    assert (check.verdict, check.figure) == ("fail", "none within 0.5 s")
    monkeypatch.setattr(exchange, "STARTED_SECONDS", 90)
    monkeypatch.setattr(exchange, "_all_reduce", lost)
    check = only(exchange.all_reduce())
    assert (check.verdict, check.figure) == ("fail", "ConnectionError: no route")


def test_a_failed_check_is_one_line_and_the_exit_status(tmp_path, monkeypatch, capsys):
    assert str(Check(verdict="warn", name="x", figure="1 GB", fix="buy more")) == f"warn  {'x':<24} 1 GB  (buy more)"

    def broken(directory):
        raise OSError("Read-only file system")
        yield

    names = ("versions", "cuda", "matrix_product", "memory", "all_reduce")
    for name in names:
        monkeypatch.setattr(sys.modules[main.__module__], name, lambda: iter(()))
    assert main(["--directory", str(tmp_path)]) == 0
    assert " MB/s, " in capsys.readouterr().out
    monkeypatch.setattr(sys.modules[main.__module__], "disk", broken)
    assert main(["--directory", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("fail  disk                     OSError: Read-only file system  (")
    with pytest.raises(SystemExit, match="2"):
        main(["--directory", str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA GeForce RTX 3060", 25.5),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 88.2),
        ("NVIDIA GeForce RTX 4070 Ti", 80.2),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_cards_are_known_by_what_the_driver_calls_them(name, rate):
    assert bf16_tflops(name) == rate
