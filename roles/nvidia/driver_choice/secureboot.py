"""Secure Boot: the kernel loads modules only that are signed with a key that the firmware knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .answer import Node

# Where DKMS signs from, and how such a key is made, on each distribution.
KEYS = {
    "debian": (
        "/var/lib/dkms/mok.pub",
        "sudo apt install openssl mokutil && sudo install -d /var/lib/dkms && sudo openssl req -new -x509 -newkey "
        "rsa:2048 -nodes -days 36500 -subj /CN=DKMS/ -keyout /var/lib/dkms/mok.key -outform DER "
        "-out /var/lib/dkms/mok.pub",
    ),
    "ubuntu": (
        "/var/lib/shim-signed/mok/MOK.der",
        "sudo apt install shim-signed mokutil && sudo update-secureboot-policy --new-key",
    ),
}


def check(node: Node, repository: str, signed: bool) -> None:
    """Refuse, with the steps, a node that would not load the modules; nothing is half installed."""
    key, make = KEYS[node.system.split()[0]]
    if not node.secure_boot or signed or key in node.enrolled:
        return
    other = " or write nvidia_repository: distribution (Ubuntu's modules are signed)," if repository == "nvidia" else ""
    raise ValueError(
        f"Secure Boot is on there, and the driver's modules would be signed with a key that the firmware does not "
        f"know: switch Secure Boot off in the firmware,{other if 'ubuntu' in node.system else ''} or enroll a key: "
        f"(1) {make} (2) sudo mokutil --import {key} and invent a password (3) sudo reboot, and at the machine's own "
        f"screen: Enroll MOK, Continue, Yes, that password (4) run site.yml again"
    )
