"""State dicts as bytes and back: tensors in the safetensors format, everything else in a small tree beside them.

The tree has the nesting of a state dict; each node is a pair of its kind and its content: ("tensor", name in the
safetensors file), ("dict", [(key, node), ...]), ("list", [node, ...]), ("tuple", [node, ...]) or ("value", anything
that torch.load(weights_only=True) reads).
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch

# Names of the safetensors format. Tensors of other types or classes are kept in the tree.
NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}
PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


@dataclasses.dataclass(kw_only=True)
class Flat:
    """A state dict taken apart: its tree, and its tensors by name."""

    tree: tuple
    tensors: dict[str, torch.Tensor]

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def flatten(state: object) -> Flat:
    """Take a nested state dict apart. Tensors keep their storage; one that is there twice (tied) is kept once."""
    tensors: dict[str, torch.Tensor] = {}
    seen: dict[tuple, str] = {}

    def node(value: object, name: str) -> tuple:
        if isinstance(value, torch.Tensor) and _is_plain(value):
            same = (value.data_ptr(), value.dtype, value.device, value.shape, value.stride()) if value.numel() else name
            if same not in seen:
                seen[same] = name if name not in tensors else f"{name}#{len(tensors)}"
                tensors[seen[same]] = value.detach()
            return "tensor", seen[same]
        if isinstance(value, Mapping):
            return "dict", [(key, node(inner, f"{name}.{key}" if name else str(key))) for key, inner in value.items()]
        if type(value) in (list, tuple):
            return type(value).__name__, [node(inner, f"{name}.{index}") for index, inner in enumerate(value)]
        return "value", value

    tree = node(state, "")
    # The widest types first: then every tensor begins at a multiple of its element size, without gaps.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    return Flat(tree=tree, tensors=dict(ordered))


def unflatten(tree: tuple, tensors: Mapping[str, torch.Tensor]) -> object:
    """The state dict that `flatten` took apart; any mapping has become a dict."""
    kind, content = tree
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten(inner, tensors) for key, inner in content}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(unflatten(inner, tensors) for inner in content)
    return content


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) in PLAIN and tensor.layout == torch.strided and tensor.dtype in NAMES


def header_of(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The beginning of a safetensors file with these tensors one behind the other, padded to 8 bytes."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@dataclasses.dataclass(kw_only=True, frozen=True)
class Stored:
    """Where a safetensors file keeps a tensor: its first byte `at`, counted from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    at: int


def stored_in(file: Path) -> dict[str, Stored]:
    """Name -> place of all tensors of a safetensors file.

    safetensors itself gives tensors, not their places; a rank without the file has only bytes from the network.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    return {
        name: Stored(dtype=DTYPES[told["dtype"]], shape=tuple(told["shape"]), at=8 + length + told["data_offsets"][0])
        for name, told in header.items()
    }


def read_into(content: torch.Tensor, stream: io.RawIOBase, at: int) -> None:
    """Fill `content` (uint8) with what follows byte `at`. Errors: OSError where the file ends before."""
    memory = memoryview(content.numpy())
    stream.seek(at)
    while memory:
        count = stream.readinto(memory[: 1 << 30])  # Linux gives 2 GB at most
        if not count:
            raise OSError(f"it ends {len(memory)} bytes too early")
        memory = memory[count:]


def view(memory: torch.Tensor, dtype: torch.dtype, shape: list[int], offset: int) -> torch.Tensor:
    """The tensor that begins at byte `offset` of `memory` (uint8)."""
    size = torch.Size(shape).numel() * dtype.itemsize
    return memory[offset : offset + size].view(dtype).view(shape)
