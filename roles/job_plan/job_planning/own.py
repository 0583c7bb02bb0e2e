"""A job that a script of the user's own does: which files are copied, with which arguments, what else they need."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from .archives import archive
from .arguments import words as words_of
from .files import files_of
from .options import job_name, overrides, own_path
from .place import ROOT
from .requirements import extra_packages


def own(
    arguments: Mapping[str, Any], given: Mapping[str, Any], cluster: Mapping[str, Any], typed: Sequence[str]
) -> dict[str, Any]:
    """The part of the plan that a script of the user's own decides; `typed` is each -e as it was typed."""
    words, rest = words_of(arguments["script_args"], typed)
    settings = overrides({name: value for name, value in given.items() if name not in rest})
    if settings or "config" in given:
        name = "config" if "config" in given else settings[0].partition("=")[0]
        raise ValueError(
            f"-e {name}: that is for Minos's own training; a script takes its settings by script_args: "
            f"-e \"script_args='--{name} ...'\""
        )
    script = own_path("script", arguments["script"])
    given_folder = str(arguments["script_dir"])
    folder = own_path("script_dir", given_folder) if given_folder else None
    files = files_of(script, folder, ROOT)
    file, digest = archive("own", files)
    place = f"own-{digest}"
    about = {"recipe": "script", "script": f"{place}/{script.relative_to(folder or script.parent)}", "arguments": words}
    job = job_name(arguments["job"] or re.sub(r"[^a-z0-9_.-]+", "-", script.stem.lower()))
    here = f"{cluster['cluster_state_path']}/jobs/{job}"
    packages = {}
    if arguments["requirements"]:
        lock = (ROOT / f"training/requirements-{cluster['python_env_variant']}.txt").read_text()
        wanted = extra_packages(own_path("requirements", arguments["requirements"]), lock)
        name = f"packages-{hashlib.sha256((wanted + lock).encode()).hexdigest()[:12]}"
        packages = {
            "wanted": wanted,
            "path": f"{here}/{name}",
            "shared": f"{cluster['cluster_shared_path']}/jobs/{job}/{name}",
        }
        about["packages"] = name
    text = yaml.safe_dump(about, sort_keys=False)
    return {
        "job": job,
        "recipe": "script",
        "config": text,
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "steps": 0,
        "data": [],
        "archives": [{"archive": str(file), "path": f"{here}/{place}"}],
        "packages": packages,
    }
