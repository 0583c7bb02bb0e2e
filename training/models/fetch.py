"""Models and tokenizers of the hub: fetched once for the whole cluster, verified, then read without any network.

A name that is a hub id becomes a directory `<organisation>--<name>` (a tokenizer alone: `...--tokenizer`) that is there
whole or not at all: the download goes on under a hidden name until every file has the hash that the hub states. Its
manifest.json says which commit it is and what each file's SHA-256 is. Only weights in safetensors are taken (pickled
ones run code when they are loaded), and never code of the model's repository.

The token of gated models is read from the environment variable HF_TOKEN and from nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from training.config import Config
from training.files import fsync_directory, fsync_file, sha256_of, write_atomically
from training.models.download import download
from training.models.errors import ModelError

MANIFEST = "manifest.json"


def fetch(config: Config, directory: Path) -> Config:
    """`config` with its hub ids replaced by directories under `directory`; what is not there yet is downloaded.

    Names that need no download (`scratch`, `bytes`, an empty tokenizer, a directory) stay as they are, so the result
    is what `load_tokenizer` and `load_model` take. The identity of a run is that of the config before this, whose
    names mean the same on every machine. Prints one line per model or tokenizer, which ends in `fetched` or
    `unchanged`; a model that is whole already needs no network. Several processes may call this at once.

    Errors: ModelError, one line with the key, the name and what to do.
    """
    names = {key: getattr(config, key) for key in ("model", "tokenizer")}
    found = {key: str(_fetched(key, name, directory)) for key, name in names.items() if _is_hub_id(key, name)}
    return dataclasses.replace(config, **found)


def _is_hub_id(key: str, name: str) -> bool:
    if name in ("", "scratch", "bytes") or name.startswith(("/", "./", "../", "~")) or Path(name).is_dir():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        fix = "write the path of a Hugging Face directory that is there, or a hub id such as openai-community/gpt2"
        raise ModelError(f"{key}: {name} is neither a directory nor a hub id; {fix}") from None
    return True


def _places(key: str, name: str, directory: Path) -> list[Path]:
    """Where `name` may lie, the place of a download last; a whole model holds its tokenizer, too."""
    whole = directory / name.replace("/", "--")
    return [whole] if key == "model" else [whole, whole.with_name(f"{whole.name}--tokenizer")]


def _fetched(key: str, name: str, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    places = _places(key, name, directory)
    place = places[-1]
    with _alone(directory / f".{place.name}.lock"):
        outcome = "unchanged"
        for candidate in places:
            if not _damaged(candidate) and (key != "model" or any(candidate.glob("*.safetensors"))):
                place = candidate
                break
        else:
            _download(key, name, place)
            outcome = "fetched"
    manifest = _manifest(place)
    size = sum(facts["size"] for facts in manifest["files"].values())
    facts = f"{len(manifest['files'])} files, {size / 1e9:.2f} GB, commit {manifest['commit'][:12]}"
    print(f"{key} {name}: {facts}, {outcome}", flush=True)
    return place


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold `lock`; the end of the process frees it, too."""
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _manifest(place: Path) -> dict | None:
    """The manifest of a complete directory; None where there is none that can be read."""
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        return manifest if manifest["commit"] and manifest["files"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _damaged(place: Path) -> list[str]:
    """Files of `place` that are not what its manifest says; the manifest itself where that is missing.

    A file whose size and time of change are those of the last check is not hashed again.
    """
    manifest = _manifest(place)
    if manifest is None:
        return [MANIFEST]
    damaged, looked_at = [], False
    for name, facts in manifest["files"].items():
        try:
            status = (place / name).stat()
        except OSError:
            damaged.append(name)
            continue
        if status.st_size != facts["size"]:
            damaged.append(name)
        elif status.st_mtime_ns != facts["changed_ns"]:
            if sha256_of(place / name) != facts["sha256"]:
                damaged.append(name)
            facts["changed_ns"], looked_at = status.st_mtime_ns, True
    if looked_at and not damaged:
        write_atomically(place / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return damaged


def _download(key: str, name: str, place: Path) -> None:
    """Make `place` complete, out of sight until it is; a damaged one is mended, to the same commit."""
    partial = place.with_name(f".{place.name}.partial")
    manifest = _manifest(place) or _manifest(partial)
    if place.exists():
        for damaged in _damaged(place):
            (place / damaged).unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        place.rename(partial)
    partial.mkdir(exist_ok=True)
    commit, hashes = download(key, name, partial, manifest["commit"] if manifest else None)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    facts = {}
    for path in sorted(path for path in partial.rglob("*") if path.is_file()):
        file = str(path.relative_to(partial))
        if file not in hashes:
            path.unlink()  # of another commit, from before an interruption
            continue
        path.chmod(0o644)
        fsync_file(path)
        status = path.stat()
        facts[file] = {"size": status.st_size, "changed_ns": status.st_mtime_ns, "sha256": hashes[file]}
    manifest = {"name": name, "commit": commit, "files": facts}
    write_atomically(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    partial.rename(place)
    fsync_directory(place.parent)
