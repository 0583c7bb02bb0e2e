"""roles/netplan/files/minos-netplan in a tree of its own: what it would run is only written down."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from paths import ROOT

FILES = ROOT / "roles/netplan/files"
NIC, MAC = "enp1s0", "52:54:00:aa:bb:01"
STANZAS = "auto lo enp1s0\niface enp1s0 inet dhcp\n"


def loaded(name: str) -> ModuleType:
    """One of the role's programs."""
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(FILES / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def below(module: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all its paths be below `tree`: nothing of this machine's own is touched."""
    for name, value in list(vars(module).items()):
        if isinstance(value, Path):
            monkeypatch.setattr(module, name, tree / value.relative_to("/"))
        elif isinstance(value, tuple) and value and all(isinstance(each, Path) for each in value):
            monkeypatch.setattr(module, name, tuple(tree / each.relative_to("/") for each in value))


def moved(module: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all its paths be below `tree`, where there is a network interface."""
    below(module, tree, monkeypatch)
    link = tree / "sys/class/net" / NIC
    link.mkdir(parents=True)
    (link / "address").write_text(MAC + "\n")
    (link / "mtu").write_text("1500\n")
    (tree / "etc/netplan").mkdir(parents=True)


class Guard:
    """The program as `guard.verb(...)`, and what became of the machine."""

    def __init__(self, tree: Path, monkeypatch: pytest.MonkeyPatch):
        self.program, self.ran, self.answers = loaded("minos-netplan"), [], {}
        moved(self.program, tree, monkeypatch)
        replaced = {
            "run": self._run,
            "answer": lambda *command: self.answers.get(command[1:], ""),
            "active": lambda unit: False,
            "use_netplan": lambda interface: None,
        }
        for name, stub in replaced.items():
            monkeypatch.setattr(self.program, name, stub)
        self.program.STATE.mkdir(parents=True)
        self.program.INTERFACES.parent.mkdir()
        self.program.INTERFACES.write_text(STANZAS)

    def _run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        self.ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    def __getattr__(self, name: str) -> object:
        return getattr(self.program, name)

    def change(self, owner: str = "ifupdown", address: str = "10.0.0.9/24", mtu: int = 0) -> None:
        """Try settings, without keeping them yet."""
        renderer = "NetworkManager" if owner == "NetworkManager" else "networkd"
        settings = {"renderer": renderer, "addresses": [address], "nameservers": {"addresses": ["10.0.0.1"]}}
        ours = {"network": {"version": 2, "ethernets": {NIC: settings | ({"mtu": mtu} if mtu else {})}}}
        self.program.CANDIDATE.write_text(yaml.safe_dump(ours))
        self.program.apply(Asked(NIC, owner))


class Asked:
    """What the command line says."""

    seconds = 90

    def __init__(self, interface: str = NIC, owner: str = "ifupdown"):
        self.interface, self.owner = interface, owner
