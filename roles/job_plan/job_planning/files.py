"""Which files of this machine a script is made of."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

MOST_FILES, MOST_BYTES = 5000, 50_000_000


def files_of(script: Path, folder: Path | None, ours: Path) -> list[tuple[str, bytes | str, int]]:
    """Return (name, content, mode) of each file to copy, a str for the target of a link: the script, or its folder.

    `folder` is the directory that is copied as a whole, None for the script alone. Beside it in `ours`, this
    repository, lies what every job gets anyway.
    """
    modules = _imported(script)
    if folder is None:
        for module in sorted(modules):
            place = script.parent / module
            there = place.with_suffix(".py").is_file() or (place.is_dir() and any(place.glob("*.py")))
            if there and place != ours / "training":
                raise ValueError(
                    f"script={script}: it imports {module}, which lies beside it; "
                    f"write -e script_dir={script.parent} too, and that folder is copied with it"
                )
        return [_entry(script, script.name)]
    if not script.is_relative_to(folder):
        raise ValueError(f"script_dir={folder}: {script} is not in it")
    entries, size, largest = [], 0, (0, "")
    for path in _below(folder):
        name = str(path.relative_to(folder))
        if path.is_symlink() and path.is_dir() and not path.readlink().is_absolute():
            leads_to = path.resolve()
            if not leads_to.is_relative_to(folder.resolve()):
                raise ValueError(
                    f"script_dir={folder}: {name} is a link to {leads_to}, which is not copied with it: put that "
                    "folder itself there, or make script_dir the folder that holds both"
                )
        if not (path.is_symlink() and not path.is_file()):
            size += path.stat().st_size
            largest = max(largest, (path.stat().st_size, name))
        if len(entries) >= MOST_FILES:
            raise ValueError(f"script_dir={folder}: more than {MOST_FILES} files; give the script a folder of its own")
        if size > MOST_BYTES:
            raise ValueError(
                f"script_dir={folder}: more than {MOST_BYTES // 1_000_000} MB ({largest[1]} alone has "
                f"{largest[0] / 1e6:.0f}); data belong into the shared directory, not beside the script"
            )
        entries.append(_entry(path, name))
    if str(script.relative_to(folder)) not in {name for name, *_ in entries}:
        raise ValueError(f"script_dir={folder}: {script} lies in a folder that is hidden, which is not copied")
    return entries


def _entry(path: Path, name: str) -> tuple[str, bytes | str, int]:
    if path.is_symlink() and not path.is_file():
        return name, str(path.readlink()), 0o777
    return name, path.read_bytes(), 0o755 if path.stat().st_mode & 0o100 else 0o644


def _below(folder: Path) -> Iterator[Path]:
    """Files, and links to folders, in a fixed order; without what is hidden, compiled, or a Python environment."""
    for place, folders, names in os.walk(folder):
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name not in ("__pycache__", *links)
            if not (here / name / "pyvenv.cfg").exists()
        )
        for name in sorted([*names, *links]):
            path = here / name
            plain = path.is_file() or path.is_symlink()  # no sockets, no pipes
            if plain and not name.startswith(".") and path.suffix != ".pyc":
                yield path


def _imported(script: Path) -> set[str]:
    """The modules that the script imports, by the first part of their names."""
    try:
        tree = ast.parse(script.read_bytes(), filename=script.name)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        what = getattr(error, "msg", "") or str(error)
        raise ValueError(f"script={script}:{line}: {what}; a script is a Python file") from None
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found
