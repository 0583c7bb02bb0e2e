"""The components of the distribution's archive that the driver is in, added beside the owner's own sources."""

from __future__ import annotations

from collections.abc import Iterable

from .answer import Node, Repository
from .table import TABLE

OURS = "/etc/apt/sources.list.d/minos-nvidia.sources"
# Where nothing could be read of the node's sources, as before the first `apt-get update`.
USUAL = {
    "debian": (
        ("http://deb.debian.org/debian", ("", "-updates")),
        ("http://deb.debian.org/debian-security", ("-security",)),
    ),
    "ubuntu": (("http://archive.ubuntu.com/ubuntu", ("", "-updates", "-security")),),
}


def missing(node: Node, repository: str) -> list[dict[str, str]]:
    """Return what to add, one entry for each archive, from the same mirrors and with the same keys."""
    distribution = node.system.split()[0]
    if repository == "nvidia":
        needed = ["contrib"] if distribution == "debian" else []  # update-glx and the like
    else:
        needed = TABLE["distributions"][node.system]["components"]
    suites = [f"{node.codename}{pocket}" for pocket in ("", "-updates", "-security")]
    known = [each for each in node.repositories if each.suite in suites and each.file != OURS]
    if not known:
        known = [
            Repository("", uri, f"{node.codename}{pocket}", "main", "")
            for uri, pockets in USUAL[distribution]
            for pocket in pockets
        ]
    entries = {}
    for uri, suite, signed_by in dict.fromkeys((each.uri, each.suite, each.signed_by) for each in known):
        # In any suite: apt does not list what is empty, as -updates often is.
        have = {each.component for each in known if each.uri == uri}
        if lacking := " ".join(component for component in needed if component not in have):
            entries.setdefault((uri, signed_by, lacking), []).append(suite)
    return [_entry(*key, found) for key, found in entries.items()]


def _entry(uri: str, signed_by: str, components: str, suites: Iterable[str]) -> dict[str, str]:
    return {"uri": uri, "suites": " ".join(suites), "components": components, "signed_by": signed_by}
