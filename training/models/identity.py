"""A short name for the weights that a run starts from, to see in a moment whether all nodes have the same.

DDP sends what is trained from rank 0 to all, but a frozen base is what each node has read: another version of it on
one node would train wrong weights without a word.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from training.models.errors import ModelError
from training.models.fetch import MANIFEST

SAMPLES = 64  # pieces of each file, evenly spread; every tensor of a usual shard is met
SAMPLE = 4096  # bytes of a piece
OF_ITS_WRITER = ("_name_or_path", "transformers_version")  # keys of config.json that change nothing


def identity_of(model: str) -> str:
    """16 hex digits for `model`: a directory, `scratch` or a hub id (both of which the config says everything about).

    A directory that was fetched has its files' hashes in its manifest. Of another one, the names, the sizes and a
    sample of the content count: to hash a model of 16 GB at every start would take longer than to load it.
    Errors: ModelError when a file cannot be read.
    """
    directory = Path(model)
    if not directory.is_dir():
        return model
    digest = hashlib.sha256()
    try:
        if (directory / MANIFEST).exists():
            manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
            digest.update(json.dumps([(name, facts["sha256"]) for name, facts in manifest["files"].items()]).encode())
        else:
            for file in sorted(directory.glob("*.safetensors")):
                _sample(file, digest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"model: {model} cannot be read ({error}); fetch it again") from None
    return digest.hexdigest()[:16]


def architecture_of(model: str) -> str:
    """16 hex digits for what config.json says of how the weights are used; nothing without such a file. For a look at
    all nodes alone: a checkpoint outlives another version of it. Errors: ModelError.
    """
    file = Path(model) / "config.json"
    if not file.is_file():
        return ""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        said = {key: value for key, value in content.items() if key not in OF_ITS_WRITER}
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"model: {file} cannot be read ({error}); fetch it again") from None
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _sample(file: Path, digest) -> None:
    size = file.stat().st_size
    digest.update(f"{file.name} {size} ".encode())
    with file.open("rb") as stream:
        for index in range(SAMPLES):
            stream.seek((size - SAMPLE) * index // (SAMPLES - 1) if size > SAMPLE else 0)
            digest.update(stream.read(SAMPLE))
