"""A lab of one's own, and Ansible's runs against it: what the tests of whole nodes share."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# On the disks of virtual machines beforehand: apt takes minutes in an emulated one. The role installs chrony itself.
VM_PACKAGES = "netplan.io,ufw,python3-venv,iputils-arping,nfs-kernel-server,nfs-common"

LAB_COMMAND = (sys.executable, "-B", "-m", "lab")


@dataclass(frozen=True)
class Lab:
    """The lab called `name`, on which one file of tests works."""

    name: str
    patience: float = 800
    """Seconds that one command may take."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the environment, besides the host's."""

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "MINOS_LAB": self.name, "ANSIBLE_NOCOLOR": "1", **self.variables}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=self.patience,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One of the lab's verbs."""
        return self.run(*LAB_COMMAND, *arguments, check=check)

    def on(self, node: str, command: str, *, check: bool = True) -> str:
        """Run a shell command on a node over SSH, as its user."""
        return self.command("ssh", node, command, check=check).stdout.strip()

    def inside(self, node: str, command: str, *, check: bool = True) -> str:
        """Run a shell command as root inside a node, without the network."""
        return self.command("exec", node, "sh", "-c", command, check=check).stdout.strip()

    def outside(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on the LAN, on a machine that is no node."""
        return self.command("exec", "lan", *command, check=check)

    def status(self) -> dict:
        return json.loads(self.command("status", "--json").stdout)

    def nodes(self) -> dict[str, dict]:
        return self.status()["nodes"]

    def power(self) -> dict[str, str]:
        return {name: node["power"] for name, node in self.nodes().items()}

    def playbook(
        self, name: str, *arguments: str, inventory: Collection[str | Path] = ("inventory/lab",), check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        sources = [word for file in inventory for word in ("-i", str(file))]
        return self.run("ansible-playbook", *sources, name, *arguments, check=check)

    def checks(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the checks of the nodes as a user would."""
        checks = [sys.executable, "-m", "pytest", "-q", "tests/nodes", "--ansible-inventory=inventory/lab"]
        return self.run(*checks, *arguments, check=False)


def recap(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, int]]:
    """Map each host of PLAY RECAP to its counts."""
    lines = done.stdout.partition("PLAY RECAP")[2].splitlines()
    counts = {line.split()[0]: dict(re.findall(r"(\w+)=(\d+)", line)) for line in lines if "ok=" in line}
    return {host: {key: int(value) for key, value in found.items()} for host, found in counts.items()}


def changed(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    return {host: counts["changed"] for host, counts in recap(done).items()}


def wait_until(condition: Callable[[], object], patience: float = 300, *, pause: float = 1) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(pause)
