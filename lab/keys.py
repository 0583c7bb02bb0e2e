"""SSH keys of a lab: one for its owner, three per node, and the known_hosts file that follows from them."""

import os
import secrets
import shutil
from pathlib import Path

from lab import process
from lab.config import Paths
from lab.files import write_atomically
from lab.state import LabState

HOST_KEY_KINDS = ("ed25519", "ecdsa", "rsa")  # what Debian's installer makes


def make_private(paths: Paths, owner: int) -> None:
    """The owner's directory with key and password. Found half-made, it is completed."""
    paths.private.mkdir(exist_ok=True)
    os.chown(paths.private, owner, -1)
    paths.private.chmod(0o700)
    if not paths.ssh_key.exists():
        _generate(paths, paths.ssh_key, "ed25519", f"lab {paths.lab}")
        os.chown(paths.ssh_key, owner, -1)
        os.chown(public(paths.ssh_key), owner, -1)
    if not paths.password.exists():
        write_atomically(paths.password, secrets.token_urlsafe(18) + "\n", mode=0o600, owner=owner)


def public(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


def host_keys(paths: Paths, node: str) -> list[Path]:
    """The node's private host keys, made at the first call. They outlive `reset`, as a node's address does."""
    directory = paths.host_keys / node
    directory.mkdir(parents=True, exist_ok=True)
    paths.host_keys.chmod(0o700)
    keys = [directory / f"ssh_host_{kind}_key" for kind in HOST_KEY_KINDS]
    for key, kind in zip(keys, HOST_KEY_KINDS, strict=True):
        if not key.exists():
            _generate(paths, key, kind, f"root@{node}")
    return keys


def write_known_hosts(paths: Paths, state: LabState) -> None:
    """From the keys themselves: no node is ever trusted at first sight."""
    lines = []
    for name, node in state.nodes.items():
        for key in host_keys(paths, name):
            kind, blob, _ = public(key).read_text().split(maxsplit=2)
            lines.append(f"{node.address},{state.spare_address(name)} {kind} {blob}\n")
    write_atomically(paths.known_hosts, "".join(lines), mode=0o600, owner=state.owner)


def _generate(paths: Paths, key: Path, kind: str, comment: str) -> None:
    """Under another name first: a key file that exists is whole."""
    draft = key.with_name(f"draft-{key.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    process.run(paths.lab, "ssh-keygen", "-q", "-t", kind, "-N", "", "-C", comment, "-f", draft / "key")
    (draft / "key.pub").rename(public(key))
    (draft / "key").rename(key)
    draft.rmdir()
