"""Paths: the roles make these directories, give them to the service user or fill them, so a wrong one costs data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from .inventory import Inventory, shown

EXAMPLES = {
    "cluster_shared_path": "/srv/minos",
    "cluster_state_path": "/var/lib/minos",
    "cluster_env_path": "/opt/minos/envs/dist-train",
}
# Nothing of ours below these: the system's own, or emptied at boot.
SYSTEM = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc"),
    *("/root", "/run", "/sbin", "/sys", "/tmp", "/usr", "/var/run", "/var/tmp"),
)
# A directory of its own below these, never the directory itself.
PARENTS = ("/", "/home", "/opt", "/var", "/var/lib")
PARENTS_OF_OWN = (*PARENTS, "/srv", "/mnt", "/media", "/data")


def check(inventory: Inventory) -> Iterator[str]:
    for host in inventory.members:
        sound: dict[str, PurePosixPath] = {}
        for name, example in EXAMPLES.items():
            value = inventory.get(host, name)
            if value is None:
                continue
            where = f"{inventory.at(host, name)}{name} is {shown(value)}"
            if wrong := unusable(name, str(value)):
                yield f"{where}{wrong}, such as {example}"
            else:
                sound[name] = PurePosixPath(str(value))
        yield from overlaps(inventory, host, sound)


def unusable(name: str, text: str) -> str:
    """Say what is wrong with a path by itself and what to write; empty where nothing is."""
    path = PurePosixPath(text)
    if not path.is_absolute() or not re.fullmatch(r"[A-Za-z0-9._/-]+", text) or ".." in path.parts:
        return ": write an absolute path of letters, digits, '.', '_' and '-'"
    if str(path).startswith("//") or str(path) in (PARENTS if name == "cluster_shared_path" else PARENTS_OF_OWN):
        return ", which holds other things too: write a directory of its own"
    if any(path.is_relative_to(system) for system in SYSTEM) and not path.is_relative_to("/usr/local"):
        return ", which is the system's: write an absolute path elsewhere"
    if path.is_relative_to("/home") and (name != "cluster_shared_path" or len(path.parts) > 3):
        return ", in somebody's home, where the service user may not go: write a path elsewhere"
    return ""


def overlaps(inventory: Inventory, host: str, paths: dict[str, PurePosixPath]) -> Iterator[str]:
    """The share is everybody's, the state a node's own, the environment root's: none lies in another."""
    names = list(paths)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            inner, outer = (first, second) if paths[first].is_relative_to(paths[second]) else (second, first)
            if paths[inner].is_relative_to(paths[outer]):
                blamed = inner if inner in inventory.written(host) else outer
                yield (
                    f"{inventory.at(host, blamed)}{blamed} is {shown(paths[blamed])}, but {inner} "
                    f"{shown(paths[inner])} must not be {outer} {shown(paths[outer])} or lie in it: "
                    f"write another path, such as {EXAMPLES[blamed]}"
                )
