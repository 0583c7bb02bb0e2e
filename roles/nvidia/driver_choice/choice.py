"""The choice itself: what the cards and torch need, against what the archives have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import secureboot, sources
from .answer import Node
from .packages import names, signed_kernels
from .table import ARCHITECTURES, NAMES, TABLE, architecture, nccl_settings, number, of_cuda


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the inventory says; empty: choose."""

    cuda: str
    branch: int = 0
    modules: str = "auto"
    repository: str = "auto"
    cards: Mapping[str, str] = field(default_factory=dict)
    replace: bool = False
    load: bool = True
    persistence: bool = True
    cuda_toolkit: bool = False
    container_toolkit: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do on one node."""

    keep: bool = False
    """The driver that is there stays, and is not ours to touch."""
    branch: int
    flavour: str = ""
    repository: str = ""
    packages: list[str] = field(default_factory=list)
    sources: list[dict[str, str]] = field(default_factory=list)
    nvidia: dict[str, str] = field(default_factory=dict)
    """NVIDIA's repository, where something comes from there: folder, key, fingerprint, and what for."""
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Need:
    """What drives all cards: branches from-to, kernel modules, and why."""

    least: int
    most: int | None
    modules: list[str]
    why: str

    def fits(self, branch: int) -> bool:
        return self.least <= branch and (self.most is None or branch <= self.most)

    def __str__(self) -> str:
        upper = f"to {self.most}" if self.most else "or newer"
        return f"driver {self.least} {upper} with {' or '.join(self.modules)} modules ({self.why})"


def choose(node: Node, wish: Wish, others: Iterable[str] = ()) -> Plan:
    """Return the plan for a node with cards; `others` are the cards of its peers, which get the same branch.

    ValueError: one line that says what does not fit, or asks what nobody can know from here.
    """
    need = needed(node, wish, others)
    ids = [card for _, card in node.cards]
    if node.container and wish.load:
        return Plan(
            keep=True, branch=0, environment=nccl_settings(ids), notes=["a container: its driver is its host's"]
        )
    if node.foreign or (node.driver and not node.ours and not wish.replace):
        return Plan(keep=True, branch=kept(node, need), environment=nccl_settings(ids))
    repository, branch, flavours = next(fitting(node, wish, need), None) or nothing(node, wish, need)
    flavour = preferred(flavours, branch, wish)
    signed = repository == "distribution" and node.system.startswith("ubuntu") and bool(signed_kernels(node))
    secureboot.check(node, repository, signed)
    return Plan(
        branch=branch,
        flavour=flavour,
        repository=repository,
        packages=names(node, wish, repository, branch, flavour),
        sources=sources.missing(node, repository),
        nvidia=nvidias(node, wish, repository),
        environment=nccl_settings(ids),
        notes=list(notes(node, wish, repository, need)),
    )


def needed(node: Node, wish: Wish, others: Iterable[str]) -> Need:
    cuda = of_cuda(wish.cuda)
    own = {card: identified(slot, card, wish, cuda) for slot, card in node.cards}
    modules = [
        flavour
        for flavour in ("open", "proprietary")
        if all(flavour in ARCHITECTURES[name]["modules"] for name in own.values())
    ]
    if not modules:
        each = ", ".join(f"10de:{card} ({name}) {ARCHITECTURES[name]['modules'][0]}" for card, name in own.items())
        raise ValueError(f"no driver drives all its cards, as each needs its own kernel modules: {each}; take one out")
    theirs = {architecture(card, wish.cards) for card in others} & set(usable(cuda))
    everybody = {*own.values(), *theirs}
    firsts = {ARCHITECTURES[name]["first_branch"]: name for name in sorted(everybody, key=NAMES.index)}
    lasts = {ARCHITECTURES[name]["last_branch"]: name for name in everybody if "last_branch" in ARCHITECTURES[name]}
    least = max(*firsts, cuda["branch"])
    reasons = [
        f"{firsts[least]} cards"
        if least in firsts and least != cuda["branch"]
        else f"CUDA {wish.cuda} of the locked torch"
    ]
    most = min(lasts, default=None)
    if most:
        reasons.append(f"{lasts[most]} cards end with {most}")
    return Need(least, most, modules, ", ".join(reasons))


def identified(slot: str, card: str, wish: Wish, cuda: Mapping[str, Any]) -> str:
    """Return the architecture of a card, which torch must have code for."""
    name = architecture(card, wish.cards)
    if name is None:
        raise ValueError(
            f"nobody here knows the card 10de:{card} at {slot} (lspci -nns {slot} names it): of which architecture "
            f"is it? Write nvidia_cards: {{'{card}': {NAMES[-1]}}} (or {', '.join(NAMES[1:-1])}), or install its "
            "driver yourself and write nvidia_manage: false"
        )
    if name not in NAMES:
        raise ValueError(f"nvidia_cards calls {card} '{name}': write one of {', '.join(NAMES)}")
    if name in usable(cuda):
        return name
    oldest, *_, newest = usable(cuda)
    raise ValueError(
        f"its card 10de:{card} at {slot} ({name}) is too {'old' if NAMES.index(name) < NAMES.index(oldest) else 'new'} "
        f"for CUDA {wish.cuda} of the locked torch, which runs on {oldest} to {newest}: take the card or the node out, "
        "or lock another build of torch"
    )


def usable(cuda: Mapping[str, Any]) -> list[str]:
    """Return the architectures that builds of torch with this CUDA have code for."""
    return NAMES[NAMES.index(cuda["from"]) : NAMES.index(cuda.get("to", NAMES[-1])) + 1]


def kept(node: Node, need: Need) -> int:
    """Return the branch of a driver that somebody else put there, where it will do."""
    branch = number(node.driver)[0] if node.driver else 0
    if node.driver and need.fits(branch):
        return branch
    there = f"driver {node.driver}" if node.driver else "a driver that is not loaded"
    remove = (
        f"it came with NVIDIA's installer ({node.foreign}): remove it by `sudo nvidia-uninstall`"
        if node.foreign
        else "let this replace it (nvidia_replace: true)"
    )
    raise ValueError(
        f"{there} is installed there, not by this role, and {need} is needed: {remove}, or update it yourself"
    )


def fitting(node: Node, wish: Wish, need: Need) -> Iterator[tuple[str, int, list[str]]]:
    """Go through what the archives have, the distribution's own first."""
    for repository, branch, flavours in offers(node, wish):
        flavours = [each for each in flavours if each in need.modules and wish.modules in ("auto", each)]
        if flavours and need.fits(branch) and wish.branch in (0, branch) and wish.repository in ("auto", repository):
            yield repository, branch, flavours


def offers(node: Node, wish: Wish) -> Iterator[tuple[str, int, list[str]]]:
    for branch, facts in TABLE["distributions"].get(node.system, {"branches": {}})["branches"].items():
        yield "distribution", branch, facts["modules"]
    theirs = TABLE["nvidia_repository"]
    if node.system in theirs["releases"] and wish.branch in (0, *range(theirs["oldest"], 10000)):
        yield "nvidia", wish.branch or theirs["branch"], ["open", "proprietary"]


def nothing(node: Node, wish: Wish, need: Need) -> Any:
    if node.system not in TABLE["distributions"]:
        raise ValueError(
            f"nothing is known of drivers for {node.system}: install one yourself and write nvidia_manage: false"
        )
    own = ", ".join(map(str, TABLE["distributions"][node.system]["branches"]))
    wishes = {"branch": wish.branch, "modules": wish.modules, "repository": wish.repository}
    said = ", ".join(f"nvidia_{name}: {value}" for name, value in wishes.items() if value not in (0, "auto"))
    raise ValueError(
        f"it needs {need}; {node.system} has {own}, NVIDIA's repository {TABLE['nvidia_repository']['oldest']} and "
        f"newer; the inventory's {said} leaves none of them: take that out"
    )


def preferred(flavours: list[str], branch: int, wish: Wish) -> str:
    if len(flavours) == 1 or wish.modules != "auto":
        return flavours[0]
    return "open" if branch >= TABLE["open_from"] else "proprietary"


def nvidias(node: Node, wish: Wish, repository: str) -> dict[str, str]:
    """Return NVIDIA's repository where the driver, or the container toolkit alone, comes from there."""
    if repository != "nvidia" and not wish.container_toolkit:
        return {}
    return {
        **TABLE["nvidia_repository"]["releases"][node.system],
        "for": "driver" if repository == "nvidia" else "toolkit",
    }


def notes(node: Node, wish: Wish, repository: str, need: Need) -> Iterator[str]:
    if repository == "nvidia" and wish.repository == "auto" and not wish.branch:
        own = ", ".join(map(str, TABLE["distributions"][node.system]["branches"]))
        yield f"from NVIDIA's repository: {node.system}'s own driver is {own}, and it needs {need}"
    if not node.kernels and not node.container:
        yield f"no meta-package of a kernel there: {node.running} gets its headers, the next one needs them from you"
