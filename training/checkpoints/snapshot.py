"""A copy of the training state in memory that the writer process can read: what a save costs the training loop."""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from training.checkpoints.layout import Flat, flatten, header_of, view
from training.storage.steps import PROGRESS, TREES

PAGE = 4096


class NoMemory(OSError):
    """The machine has not enough memory for the copy; one line with the figures."""


class Snapshot:
    """Files of a checkpoint, complete but in memory: an anonymous file, mapped once, used again for each save.

    It grows to the size of a checkpoint and stays that large. Where CUDA is in use it is registered with the driver,
    so that copies from the GPU run at full speed.
    """

    def __init__(self) -> None:
        self.file = os.memfd_create("checkpoint")
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._pinned = False

    def take(self, states: Mapping[str, object], progress: Mapping[str, object]) -> list[tuple[str, int, int]]:
        """Copy the state dicts and the JSON facts; returns (file name, offset, bytes) of each file in the memory.

        Errors: NoMemory; ValueError for a state dict that could not be read again.
        """
        flats = {name: flatten(state) for name, state in states.items()}
        files: dict[str, bytes | tuple[bytes, Flat]] = {
            f"{name}.safetensors": (header_of(flat.tensors), flat) for name, flat in flats.items()
        }
        files[TREES] = _readable({name: flat.tree for name, flat in flats.items()})
        files[PROGRESS] = json.dumps(progress, indent=2, sort_keys=True).encode() + b"\n"
        ranges, at = [], 0
        for name, content in files.items():
            size = len(content) if isinstance(content, bytes) else len(content[0]) + content[1].size
            ranges.append((name, at, size))
            at += -(-size // PAGE) * PAGE
        self._reserve(at)
        for (_, offset, _), content in zip(ranges, files.values(), strict=True):
            if isinstance(content, bytes):
                self._put(content, offset)
            else:
                self._put(content[0], offset)
                self._copy(content[1], offset + len(content[0]))
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return ranges

    def close(self) -> None:
        """Give the memory back; the writer process holds what it still reads."""
        self._release()
        os.close(self.file)

    def _put(self, content: bytes, offset: int) -> None:
        self._memory[offset : offset + len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)

    def _copy(self, flat: Flat, offset: int) -> None:
        for tensor in flat.tensors.values():
            view(self._memory, tensor.dtype, tensor.shape, offset).copy_(tensor, non_blocking=self._pinned)
            offset += tensor.numel() * tensor.element_size()

    def _reserve(self, size: int) -> None:
        """Map at least `size` bytes. Errors: NoMemory, before the machine would begin to kill processes."""
        if size <= len(self._memory):
            return
        available = _available_memory() + len(self._memory)
        if size > available:
            figures = f"{size / 1e6:.0f} MB of memory for the copy, {available / 1e6:.0f} MB are there"
            raise NoMemory(f"a checkpoint needs {figures}; train with adapters or add memory")
        self._release()
        os.ftruncate(self.file, size)
        self._memory = torch.frombuffer(mmap.mmap(self.file, size), dtype=torch.uint8)
        if torch.cuda.is_initialized():
            self._pinned = int(torch.cuda.cudart().cudaHostRegister(self._memory.data_ptr(), size, 0)) == 0
            if not self._pinned:  # slower, no more; but the next kernel would raise what the driver remembers
                with contextlib.suppress(RuntimeError):
                    torch.zeros(1, device="cuda")

    def _release(self) -> None:
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())
        self._memory, self._pinned = torch.empty(0, dtype=torch.uint8), False


def _readable(trees: Mapping[str, object]) -> bytes:
    """The trees as torch.save writes them, proven to be readable without running foreign code."""
    stream = io.BytesIO()
    torch.save(dict(trees), stream)
    try:
        torch.load(io.BytesIO(stream.getvalue()), weights_only=True)
    except Exception as error:  # pickle.UnpicklingError and whatever an odd object raises
        found = re.search(r"(?:GLOBAL|type|class) (\S+)", str(error))
        what = found.group(1) if found else str(error).splitlines()[0]
        raise ValueError(f"a state dict contains {what}; keep tensors, numbers, texts, lists and dicts there") from None
    return stream.getvalue()


def _available_memory() -> int:
    """Bytes that the kernel would give out without swapping."""
    told = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(told.group(1)) * 1024 if told else 1 << 62
