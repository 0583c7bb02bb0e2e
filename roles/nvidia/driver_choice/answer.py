"""What files/look.sh prints of a node, read into what the choice rests on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Repository:
    """One component of one suite among the node's apt sources, in whatever file it is written."""

    file: str
    uri: str
    suite: str
    component: str
    signed_by: str


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node; cards are (slot, PCI device id in small hexadecimal digits)."""

    cards: tuple[tuple[str, str], ...] = ()
    system: str = ""
    """Such as `debian 12`."""
    codename: str = ""
    container: bool = False
    devices: bool = False
    """The driver's devices are there: a container was given its host's cards."""
    running: str = ""
    kernels: tuple[str, ...] = ()
    """Meta-packages of kernels there, without `linux-image-`: amd64, generic-hwe-24.04."""
    secure_boot: bool = False
    enrolled: tuple[str, ...] = ()
    """Signing keys of DKMS that the firmware accepts."""
    desktop: bool = False
    repositories: tuple[Repository, ...] = field(default=(), repr=False)
    ours: tuple[str, ...] = ()
    """Packages that an earlier run of this role chose."""
    driver: str = ""
    """Version of the driver that is there already, loaded or packaged."""
    foreign: str = ""
    """The nvidia-smi that belongs to no package: somebody ran NVIDIA's installer."""
    nouveau: bool = False
    jobs: tuple[str, ...] = ()


def read(text: str) -> Node:
    """Read the output of look.sh; ValueError where it is not whole."""
    sections: dict[str, list[str]] = {}
    for part in text.split("\n@")[1:]:
        name, *lines = part.splitlines()
        sections[name] = [line.strip() for line in lines if line.strip()]
    if "end" not in sections:
        raise ValueError("the question about its GPUs broke off")

    def first(name: str) -> str:
        return next(iter(sections[name]), "")

    cards = tuple((slot, device.removeprefix("0x").lower()) for slot, device in map(str.split, sections["cards"]))
    said = dict(line.split("=", 1) for line in sections["system"] if "=" in line)
    return Node(
        cards=cards,
        system=f"{said.get('ID', '')} {said.get('VERSION_ID', '')}".replace('"', ""),
        codename=said.get("VERSION_CODENAME", "").strip('"'),
        container=first("container") not in ("", "none"),
        devices=bool(sections["devices"]),
        running=first("running"),
        # Versioned ones, such as linux-image-6.1.0-38-amd64, are what the meta-packages bring.
        kernels=tuple(name for name in sections["kernels"] if not re.match(r"\d|unsigned|.*-dbg$", name)),
        secure_boot=first("secureboot") == "1",
        enrolled=tuple(sections["enrolled"]),
        desktop=bool(sections["desktop"]),
        repositories=tuple(repositories(sections["sources"], sections["keys"])),
        ours=tuple(sections["ours"]),
        driver=first("loaded") or packaged(sections["packaged"]),
        foreign=first("foreign"),
        nouveau=bool(sections["nouveau"]),
        jobs=tuple(sections["jobs"]),
    )


def repositories(sources: list[str], keys: list[str]) -> Iterator[Repository]:
    """Join apt's list of what it has with the keys in its files: two entries of one archive must name the same key."""
    signed: dict[tuple[str, str], str] = {}
    uris: dict[str, list[str]] = {}
    for file, line in (line.split(":", 1) for line in keys):
        name, _, value = line.partition(":")
        if line.startswith("deb "):
            uri = re.sub(r"\[[^]]*\]", "", line).split()[1]
            signed[file, plain(uri)] = re.search(r"signed-by=([^] ]+)", line)[1]
        elif name.lower() == "uris":
            uris[file] = value.split()
        elif name.lower() == "signed-by":
            signed |= {(file, plain(uri)): value.strip() for uri in uris.get(file, [])}
    for entry, uri, suite, component in (line.split("|") for line in sources if line.count("|") == 3):
        file = entry.rpartition(":")[0]
        yield Repository(file, plain(uri), suite, component, signed.get((file, plain(uri)), ""))


def plain(uri: str) -> str:
    """Return an archive's address as apt prints it: mirror+file:///etc/x, of Debian's cloud images, with one slash."""
    return re.sub(r":/{2,}(?=/)", ":", uri).rstrip("/")


def packaged(lines: list[str]) -> str:
    """Return the version of the packaged driver, such as 535.261.03; empty where there is none."""
    for name, version in (line.split() for line in lines):
        if re.match(r"nvidia-(smi|utils-\d+(-server)?|driver-cuda)$", name):
            return re.sub(r"^\d+:|-.*", "", version)
    return ""
