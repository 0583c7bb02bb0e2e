"""Checks of one device after the other, and of the disk."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from training.smoke.cards import bf16_tflops
from training.smoke.check import GIB, MB, Check, devices, seconds_of

DRIVER = Path("/proc/driver/nvidia/version")
WORSE_THAN_KNOWN = {"fail": 0.25, "warn": 0.6}  # of the card's rate; a healthy card reaches 0.7 to 0.95


def versions() -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Check(verdict="ok", name="torch", figure=f"{torch.__version__}, python {python}")


def cuda() -> Iterator[Check]:
    """Driver, cards, and whether they can compute in bf16."""
    if not torch.cuda.is_available():
        if not DRIVER.exists():
            yield Check(verdict="skip", name="CUDA", figure="no NVIDIA driver is loaded here")
        elif torch.version.cuda is None:
            fix = "install training/requirements-cuda.txt"
            yield Check(verdict="fail", name="CUDA", figure="a driver is loaded, torch is a CPU build", fix=fix)
        else:
            fix = "nvidia-smi says why; after an update of the driver reboot; look at CUDA_VISIBLE_DEVICES"
            yield Check(verdict="fail", name="CUDA", figure="a driver is loaded, torch sees no GPU", fix=fix)
        return
    found = re.search(r"\d{3}\.[.\d]+", DRIVER.read_text()) if DRIVER.exists() else None
    driver = found[0] if found else "not known"
    for gpu in devices():
        card = torch.cuda.get_device_properties(gpu)
        figure = f"{card.name}, {card.total_memory / GIB:.0f} GiB, capability {card.major}.{card.minor}"
        yield Check(verdict="ok", name=f"CUDA {gpu}", figure=f"{figure}, CUDA {torch.version.cuda}, driver {driver}")
        if card.major >= 8:
            yield Check(verdict="ok", name=f"bf16 {gpu}", figure="in hardware")
        else:
            fix = "write precision: fp32"
            yield Check(verdict="warn", name=f"bf16 {gpu}", figure="this card has none", fix=fix)


def matrix_product() -> Iterator[Check]:
    """The rate of a product that fills the device (bf16 on GPUs, fp32 on a CPU), and whether its result is right."""
    for device in devices():
        on_gpu = device.type == "cuda"
        size, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
        if on_gpu and torch.cuda.get_device_properties(device).major < 8:
            dtype = torch.float16
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = seconds_of(lambda left=left, right=right: left @ right, device)
        rate = 2 * size**3 / seconds / 1e12
        some = slice(0, 64)
        exact = left[some].double() @ right[:, some].double()
        error = ((left @ right)[some, some].double() - exact).norm() / exact.norm()
        shown = f"{rate:.3g} TFLOP/s" if on_gpu else f"{1000 * rate:.3g} GFLOP/s"
        name, figure = f"matrix product {device}", f"{shown} in {str(dtype).removeprefix('torch.')}"
        known = bf16_tflops(torch.cuda.get_device_name(device)) if dtype == torch.bfloat16 else None
        if not error < 0.01:
            fix = "the card computes wrong: look for Xid lines in `journalctl -k`, take off any overclocking"
            yield Check(verdict="fail", name=name, figure=f"relative error {error:.2g}", fix=fix)
        elif known is None:
            yield Check(verdict="ok", name=name, figure=figure + ", nothing known to compare with" * on_gpu)
        else:
            share = rate / known
            verdict = next((verdict for verdict, least in WORSE_THAN_KNOWN.items() if share < least), "ok")
            fix = "" if verdict == "ok" else "`nvidia-smi -q -d PERFORMANCE` says what slows it; is another job on it?"
            yield Check(verdict=verdict, name=name, figure=f"{figure}, {share:.0%} of {known:.4g}", fix=fix)


def memory() -> Iterator[Check]:
    """Write a pattern into 80 % of a GPU's memory (of a CPU's: 0.5 GiB) and read it again."""
    for device in devices():
        name = f"memory {device}"
        if device.type == "cuda":
            torch.cuda.empty_cache()
            free, total = torch.cuda.mem_get_info(device)
            wanted = int(0.8 * total)
            if free < wanted:
                fix = "other processes hold the rest: nvidia-smi names them"
                figure = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free"
                yield Check(verdict="warn", name=name, figure=figure, fix=fix)
                wanted = int(0.9 * free)
        else:
            total, wanted = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), GIB // 2
        piece = GIB // 4
        pattern = torch.arange(piece // 8, device=device)
        pieces = [pattern + index for index in range(wanted // piece - 1)]
        wrong = sum(int((found - index != pattern).sum()) for index, found in enumerate(pieces))
        figure = f"{(len(pieces) + 1) * piece / GIB:.1f} of {total / GIB:.1f} GiB written and read"
        if wrong:
            fix = "the memory is faulty: take off any overclocking, test it, replace it"
            yield Check(verdict="fail", name=name, figure=f"{wrong} of {figure} are wrong", fix=fix)
        else:
            yield Check(verdict="ok", name=name, figure=figure)
        del pattern, pieces


def disk(directory: Path) -> Iterator[Check]:
    """How fast a file in `directory` reaches the disk, up to 256 MB or 3 seconds of it."""
    block, written = os.urandom(8 * MB), 0
    with tempfile.TemporaryFile(dir=directory) as stream:
        began = time.perf_counter()
        while written < 256 * MB and time.perf_counter() - began < 3:
            written += stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
        rate = written / (time.perf_counter() - began)
    filesystem = os.statvfs(directory)
    free = filesystem.f_bavail * filesystem.f_frsize
    figure = f"{rate / MB:.0f} MB/s, {free / 1e9:.0f} GB free in {directory}"
    if free < 20e9:
        fix = "checkpoints need room: three times the model and its optimizer"
        yield Check(verdict="warn", name="disk", figure=figure, fix=fix)
    elif rate < 50 * MB:
        fix = "checkpoints of large models will be skipped while the one before is written: take a faster disk"
        yield Check(verdict="warn", name="disk", figure=figure, fix=fix)
    else:
        yield Check(verdict="ok", name="disk", figure=figure)
