"""The kinds of nodes there are."""

from lab.config import Paths
from lab.container import Containers
from lab.node import Kind

KINDS: dict[str, type[Kind]] = {"container": Containers}


def kind(name: str, paths: Paths) -> Kind:
    return KINDS[name](paths)
