"""A job that a config describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training import config

from .data import check_models, data_copies, data_sources
from .options import job_name, overrides
from .place import ROOT


def trained(arguments: Mapping[str, Any], given: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the plan that a config decides."""
    for name in ("script_dir", "script_args", "requirements"):
        if name in given:
            raise ValueError(f"-e {name}: that is for a script of your own; write -e script=FILE too")
    file = Path(str(arguments["config"]))
    settings = config.load(file if file.exists() else ROOT / file, overrides(given))
    job = job_name(arguments["job"] or file.stem)
    check_models(settings, cluster["cluster_shared_path"])
    folder = Path(f"{cluster['cluster_state_path']}/jobs/{job}")
    copies, places = [], {}
    for key, source in data_sources(settings).items():
        place, files = data_copies(key, source, folder / "data")
        places[key] = str(place)
        copies += files
    final = dataclasses.replace(settings, **places)
    about = {"job": job, "recipe": final.recipe, "config": final.to_yaml(), "config_sha256": final.sha256()}
    return {**about, "backend": final.backend, "steps": final.steps, "data": copies, "archives": [], "packages": {}}
