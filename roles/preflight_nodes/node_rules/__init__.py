"""Everything that a node's answer can show to be wrong, a theme per file.

A rule yields findings: whether it ends the run, what is wrong, and what to do about it. Who it is about is added last.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import disk, firewalls, network, running, system
from .answer import Answer, Asked, Finding

RULES = (system.check, network.check, disk.check, firewalls.check, running.check)


def findings(answer: Answer, asked: Asked) -> Iterator[Finding]:
    """Yield what is wrong with one node; what shows only beside the others is in `compare`."""
    for rule in RULES:
        yield from rule(answer, asked)
