"""The model and the data that a config names, as far as they are on this machine."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from training.files import sha256_of
from training.settings import DATA_FILES, HUB, Config

from .place import ROOT

DEMO_DATA = ROOT / "build" / "demo-data"


def make_demo_data() -> None:
    """Make it in a process of its own: inside Ansible's, the import of ansible_collections is Ansible's own affair."""
    command = [sys.executable, "-m", "training.demo_data", "--output", str(DEMO_DATA)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if made.returncode:
        raise ValueError(f"the demo data cannot be made: {made.stderr.strip()}")


def check_models(settings: Config, shared: str) -> None:
    """Refuse a model or tokenizer that lies on this machine only; ValueError says where to put it."""
    for key in ("model", "tokenizer"):
        value = getattr(settings, key)
        if value in ("", "scratch", "bytes") or Path(value).is_absolute():
            continue
        if value.startswith((".", "~")) or (ROOT / value).exists():
            there = f"{shared}/models/{Path(value).name}"
            raise ValueError(
                f"{key}: {value} is a path of this machine, which the nodes do not see; "
                f"copy it to {there} on the head and write {key}={there}, or write a hub id"
            )


def data_sources(settings: Config) -> dict[str, Path]:
    """Map config keys to files and directories of this machine that the head needs a copy of.

    What exists here is copied; an absolute path that does not is taken to exist on the head, for example in the
    shared directory; data sets of the hub are fetched there. Missing demo data is made.
    """
    sources = {}
    for key in ("data_train", "data_heldout"):
        value = getattr(settings, key)
        if not value or value.startswith(HUB):
            continue
        path = ROOT / value
        if path.parent == DEMO_DATA and not path.exists():
            make_demo_data()
        if path.exists():
            sources[key] = path
        elif not Path(value).is_absolute():
            raise ValueError(
                f"{key}: there is no file or directory {path}; write a path relative to {ROOT}, "
                "an absolute one that exists on the head, or hub:NAME"
            )
    return sources


def data_copies(key: str, source: Path, folder: Path) -> tuple[Path, list[dict[str, str]]]:
    """Return where `source` lies in `folder` on the head, and the copies (src, dest) that put it there.

    The name holds the content's hash, so that the config's hash covers the data and old data is never taken for new.
    """
    if source.is_file():
        place = folder / f"{sha256_of(source)[:12]}-{source.name}"
        return place, [{"src": str(source), "dest": str(place)}]
    files = sorted(path for path in source.rglob("*") if path.suffix in DATA_FILES and path.is_file())
    if not files:
        raise ValueError(f"{key}: there is no {', '.join(DATA_FILES)} file in the directory {source}")
    names = [str(path.relative_to(source)) for path in files]
    listing = "".join(f"{sha256_of(path)} {name}\n" for path, name in zip(files, names, strict=True))
    place = folder / f"{hashlib.sha256(listing.encode()).hexdigest()[:12]}-{source.name}"
    return place, [{"src": str(path), "dest": str(place / name)} for path, name in zip(files, names, strict=True)]
