"""Which driver a node's cards and the locked torch need, from table.yml; pure: no node is asked here."""

from __future__ import annotations

from .answer import Node, read
from .choice import Plan, Wish, choose
from .lock import cuda_of

__all__ = ["Node", "Plan", "Wish", "choose", "cuda_of", "read"]
