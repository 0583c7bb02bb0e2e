"""The kinds of nodes there are."""

from lab.config import Paths
from lab.container import Containers
from lab.node import Kind
from lab.vm import Vms

KINDS: dict[str, type[Kind]] = {"container": Containers, "vm": Vms}


def kind(name: str, paths: Paths) -> Kind:
    return KINDS[name](paths)
