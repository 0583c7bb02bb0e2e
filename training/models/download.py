"""Download the files of one model or tokenizer from the hub and compare each with what the hub states of it."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
from pathlib import Path

import httpx2  # what huggingface_hub speaks HTTP with: its connection errors come through as they are
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, XetDownloadError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import disable_progress_bars

from training.files import FULL, sha256_of
from training.models.errors import ModelError

TOKENIZER_FILES = (
    *("config.json", "tokenizer*.json", "tokenizer*.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "spiece.model", "sentencepiece*.model", "chat_template.*", "*.tiktoken"),
    *("LICENSE*", "NOTICE*", "USE_POLICY*"),
)
MODEL_FILES = (*TOKENIZER_FILES, "generation_config.json")
WHOLE_WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-*-of-*.safetensors", "model.safetensors-*-of-*.safetensors")  # the index names them, whatever they are


def download(key: str, name: str, partial: Path, commit: str | None) -> tuple[str, dict[str, str]]:
    """Bring all files of hub id `name` into `partial`; returns the commit and the SHA-256 of each file.

    `key` is the setting that asks: for `tokenizer` no weights are taken. Without `commit` it is the newest. A broken
    connection is taken up where it ended; after a crash whole files are kept and the others begin anew, since the
    client gives each attempt a name of its own. Errors: ModelError.
    """
    for unfinished in partial.rglob("*.incomplete"):
        unfinished.unlink()
    token = os.environ.get("HF_TOKEN", "").strip() or False  # False: no token of some login file either
    try:
        info = HfApi(token=token).model_info(name, revision=commit, files_metadata=True)
        wanted = {file.rfilename: file for file in _chosen(key, name, info.siblings or [])}
        _require_space(key, name, partial, wanted)
        disable_progress_bars()  # the bars of parallel downloads are unreadable in a log
        snapshot_download(name, revision=info.sha, local_dir=partial, token=token, allow_patterns=list(wanted))
    except (httpx2.HTTPError, OSError, XetDownloadError) as error:
        raise _explained(key, name, error, with_token=bool(token)) from None
    return info.sha, _verified(key, name, partial, wanted)


def _chosen(key: str, name: str, files: list[RepoSibling]) -> list[RepoSibling]:
    """The files to fetch: configuration and tokenizer, and for a model its safetensors in one form only."""
    names = {file.rfilename for file in files if "/" not in file.rfilename}  # folders hold other forms and code
    if "config.json" not in names and key == "model":
        found = "holds adapters only" if "adapter_config.json" in names else "has no config.json"
        raise ModelError(f"{key}: {name} {found}; write the id of a whole model in the Hugging Face format")
    patterns = MODEL_FILES if key == "model" else TOKENIZER_FILES
    chosen = {file for file in names if any(fnmatch.fnmatch(file, pattern) for pattern in patterns)}
    if key == "model":
        whole = [WHOLE_WEIGHTS] if WHOLE_WEIGHTS in names else []
        shards = [file for pattern in SHARDS for file in fnmatch.filter(names, pattern)] if INDEX in names else []
        weights = whole or [*shards, *([INDEX] if shards else [])]
        if not weights:
            pickled = any(file.endswith((".bin", ".pt", ".pth")) for file in names)
            why = "only pickled weights, which run code when they are loaded" if pickled else "no weights that we read"
            raise ModelError(f"{key}: {name} has {why}; choose a model that has model.safetensors")
        chosen.update(weights)
    return [file for file in files if file.rfilename in chosen]


def _require_space(key: str, name: str, partial: Path, wanted: dict[str, RepoSibling]) -> None:
    there = sum(file.stat().st_blocks * 512 for file in partial.rglob("*") if file.is_file())
    missing = sum(file.size or 0 for file in wanted.values()) - there
    free = shutil.disk_usage(partial).free
    if missing > free:
        raise ModelError(
            f"{key}: {name} needs {missing / 1e9:.1f} GB more, {partial.parent} has {free / 1e9:.1f} GB free; "
            "make room there or choose a smaller model"
        )


def _verified(key: str, name: str, partial: Path, wanted: dict[str, RepoSibling]) -> dict[str, str]:
    """SHA-256 of every file, each compared with what the hub states; wrong files are deleted, ModelError."""
    hashes = {file: _hash_if_as_stated(partial / file, stated) for file, stated in wanted.items()}
    wrong = [file for file, sha256 in hashes.items() if sha256 is None]
    for file in wrong:
        (partial / file).unlink(missing_ok=True)
    if wrong:
        names = ", ".join(wrong)
        raise ModelError(f"{key}: {name}: {names} did not arrive as the hub states; start again, the rest is kept")
    return hashes


def _hash_if_as_stated(file: Path, stated: RepoSibling) -> str | None:
    """Its SHA-256, or None. The hub states the SHA-256 of large files and Git's SHA-1 of small ones."""
    if not file.is_file() or file.stat().st_size != stated.size:
        return None
    sha256 = sha256_of(file)
    if stated.lfs is not None:
        return sha256 if sha256 == stated.lfs.sha256 else None
    content = file.read_bytes()  # what is not in large file storage has a few MB at most
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return sha256 if git == stated.blob_id else None


def _explained(key: str, name: str, error: Exception, *, with_token: bool) -> ModelError:
    """What the client's error means for whoever started the job."""
    variable = "HF_TOKEN in the environment (for train.yml: huggingface_token in a vault)"
    if isinstance(error, GatedRepoError):
        page = f"accept its licence at https://huggingface.co/{name}"
        if with_token:
            return ModelError(f"{key}: {name} is gated, and the owner of the token has no access; {page}")
        return ModelError(f"{key}: {name} is gated; {page} and set {variable}")
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    if isinstance(error, RepositoryNotFoundError) or (status == 401 and not with_token):
        private = "" if with_token else f", or it is private and needs {variable}"
        return ModelError(f"{key}: the hub knows no model {name}; mind the spelling{private}")
    if status == 401:
        return ModelError(f"{key}: the hub refuses the token for {name}; write a valid one into {variable}")
    if status == 403:
        return ModelError(f"{key}: the token may not read {name}; give it read access to gated models on the hub")
    if isinstance(error, OSError) and error.errno in FULL:
        return ModelError(f"{key}: no space left while fetching {name}; make room and start again, the rest is kept")
    first_line = str(error).strip().split("\n")[0] or type(error).__name__
    fix = "check network, proxy and HF_HUB_OFFLINE and start again (what has arrived is kept), or write a directory"
    return ModelError(f"{key}: {name} cannot be fetched ({first_line}); {fix}")
