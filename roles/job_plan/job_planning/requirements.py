"""Packages that a script needs besides the locked environment."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

LOCKED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)


def extra_packages(file: Path, lock: str) -> str:
    """Return the requirements of `file`, one on each line; ValueError for what cannot be, with file and line.

    `lock` is the text of the lock. Only what contradicts it by itself is seen here; the head sees the rest.
    """
    locked = {canonicalize_name(name): version for name, version in LOCKED.findall(lock)}
    wanted = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if text:
            wanted.append(_checked(text, f"requirements={file}:{number}", locked))
    if not wanted:
        raise ValueError(f"requirements={file}: there is no package in it; write one on each line")
    return "\n".join(wanted) + "\n"


def _checked(text: str, where: str, locked: dict[str, str]) -> str:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        raise ValueError(
            f"{where}: '{text}' is no package; write names with versions, such as einops>=0.8 "
            "(which index is asked, says python_env_index_url in the inventory)"
        ) from None
    if requirement.url:
        raise ValueError(f"{where}: '{text}' is an address; write a name with a version that the index has")
    version = locked.get(canonicalize_name(requirement.name))
    if version and not requirement.marker and not requirement.specifier.contains(version, prereleases=True):
        raise ValueError(
            f"{where}: '{text}' would change the locked environment, which has {requirement.name} {version}; "
            "leave it out, or write what goes with that version"
        )
    return text
