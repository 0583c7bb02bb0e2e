"""Secrets: never in plain text in a file, never on a command line. Messages name the variable, not its value."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ansible.parsing.vault import EncryptedString

from .inventory import Inventory

SECRET = re.compile(r"(^|_)(pass|passwd|password|passphrase|token|secret)$", re.IGNORECASE)
LOGIN = re.compile(r"ansible_(ssh_)?pass(word)?")
BECOME = re.compile(r"ansible_(become|sudo|su)_pass(word)?")
VAULT = "or encrypt it: ansible-vault encrypt_string --name {name}"


def check(inventory: Inventory) -> Iterator[str]:
    for host in inventory.members:
        for name in inventory.written(host):
            if SECRET.search(name) and plain(inventory, host, name):
                yield f"{inventory.at(host, name)}{name} is a secret in plain text: {fix(name)}"


def plain(inventory: Inventory, host: str, name: str) -> bool:
    """Whether a value can be read by whoever reads the file; one that is only referred to is somewhere else."""
    value, file = inventory.raw[host][name], inventory.path_of(host, name)
    if isinstance(value, EncryptedString) or not isinstance(value, str | int) or not str(value) or "{{" in str(value):
        return False
    return not (file and file.is_file() and file.read_bytes()[:14] == b"$ANSIBLE_VAULT")


def fix(name: str) -> str:
    vault = VAULT.format(name=name)
    if LOGIN.fullmatch(name):
        return f"take it out and log in by key (ssh-copy-id); -k asks for it until then; {vault}"
    if BECOME.fullmatch(name):
        return f"take it out and let -K ask for it; {vault}"
    if name == "huggingface_token":
        return f"take it out and set HF_TOKEN in your shell; {vault}"
    return f"take it out, {vault}"
