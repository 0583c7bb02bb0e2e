"""The distribution's own driver for real: packages from non-free, the module built by DKMS for an installed kernel.

On Debian 12 and Debian 13, each in a lab of its own. What containers cannot have is a card, whose PCI bus is a folder
written here, and a kernel of their own: the module is built, not loaded.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
BRANCHES = {"bookworm": "535", "trixie": "550"}
KERNEL = (
    "DEBIAN_FRONTEND=noninteractive apt-get -q install --yes --no-install-recommends linux-image-amd64 initramfs-tools"
)
PACKAGES = ("nvidia-kernel-dkms", "nvidia-smi", "libcuda1", "nvidia-persistenced", "linux-headers-amd64")


class Lab:
    """node1 has a card, an RTX 4090, and a kernel; node2 has none of both."""

    def __init__(self, suite: str):
        self.branch = BRANCHES[suite]
        self.environment = {**os.environ, "MINOS_LAB": f"driver{suite[0]}", "ANSIBLE_NOCOLOR": "1"}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done

    def lab(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "lab", *arguments).stdout

    def on(self, node: str, command: str) -> str:
        """Run a shell command as root inside a node, without SSH."""
        return self.lab("exec", node, "sh", "-c", command).strip()

    def site(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """CUDA 12.6, which these branches drive; `nvidia_load: false`, because the kernel is not the container's."""
        options = ("nvidia_pci_path=/var/tmp/pci", "nvidia_load=false", "nvidia_cuda=12.6", "nvidia_power_limit=250")
        words = [word for option in options for word in ("-e", option)]
        command = [
            "ansible-playbook",
            "-i",
            "inventory/lab",
            "site.yml",
            "--tags",
            "packages,nvidia",
            *words,
            *arguments,
        ]
        return self.run("nice", "-n", "10", *command, check=check)


def changes(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    recap = done.stdout.partition("PLAY RECAP")[2]
    return {host: int(count) for host, count in re.findall(r"^(\S+) .*changed=(\d+)", recap, re.MULTILINE)}


@pytest.fixture(scope="module", params=BRANCHES)
def lab(request):
    made = Lab(request.param)
    made.lab("down")
    made.lab("up", "-n", "2", "--suite", request.param)
    slot = "/var/tmp/pci/0000:01:00.0"
    for node, vendor in (("node1", "0x10de"), ("node2", "0x1002")):
        made.on(node, f"mkdir -p {slot}; cd {slot}; echo {vendor} >vendor; echo 0x2684 >device; echo 0x030000 >class")
    made.on("node1", f"apt-get -qq update && {KERNEL}")
    yield made
    made.lab("down")


def test_check_mode_on_virgin_nodes_changes_nothing(lab):
    done = lab.site("--check", "--diff")
    assert changes(done)["node1"] > 3, "it should say what it would change"
    assert lab.on("node1", "ls -d /var/lib/minos-nvidia /etc/modprobe.d/minos* 2>/dev/null; true") == ""


def test_secure_boot_stops_it_before_anything_is_installed(lab):
    variables = "/var/tmp/efi/efivars"
    lab.on("node1", rf"mkdir -p {variables}; printf '\006\000\000\000\001' >{variables}/SecureBoot-8be4")
    done = lab.site("-e", "nvidia_efi_path=/var/tmp/efi", check=False)
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert done.returncode != 0
    assert "node1: Secure Boot is on there" in said and "sudo mokutil --import /var/lib/dkms/mok.pub" in said
    assert lab.on("node1", "dpkg-query --list '*nvidia*' 2>/dev/null | grep ^ii; true") == ""


def test_the_driver_is_installed_and_its_module_built(lab):
    before = lab.on("node2", "dpkg-query --show")
    done = lab.site()
    assert done.stdout.count("No NVIDIA GPU in node2") == 1
    shown = lab.on("node1", r"dpkg-query --show --showformat '${Package}\t${Version}\n'")
    installed = dict(line.split("\t") for line in shown.splitlines())
    assert set(PACKAGES) <= set(installed)
    assert installed["nvidia-smi"].startswith(f"{lab.branch}.")
    kernel = lab.on("node1", "ls /boot/vmlinuz-* | sed 's,.*vmlinuz-,,'")
    version = lab.on("node1", f"modinfo -k {kernel} -F version nvidia-current")  # as Debian calls the file
    assert installed["nvidia-smi"].startswith(version), "library and module are of one version"
    assert "installed" in lab.on("node1", "dkms status")
    new = set(lab.on("node2", "dpkg-query --show").splitlines()) - set(before.splitlines())
    assert not [line for line in new if re.search("nvidia|cuda|dkms|linux-", line)]


def test_a_second_run_changes_nothing(lab):
    assert changes(lab.site()) == {"localhost": 0, "node1": 0, "node2": 0}


def test_driver_and_kernel_are_held_back(lab):
    held = lab.on("node1", "apt-mark showhold").split()
    assert {*PACKAGES, "linux-image-amd64", "libnvidia-ml1"} <= set(held)
    assert "Inst" not in lab.on("node1", f"apt-get --simulate dist-upgrade | grep -E '{'|'.join(PACKAGES)}'; true")
    assert lab.on("node2", "apt-mark showhold") == ""


def test_nouveau_is_out_also_in_the_initial_ram_disk(lab):
    assert "blacklist nouveau" in lab.on("node1", "modprobe --showconfig")
    inside = lab.on("node1", "lsinitramfs /boot/initrd.img-*")
    assert "etc/modprobe.d/minos-nvidia.conf" in inside


def test_the_owners_sources_stay_as_they_are(lab):
    assert (
        lab.on("node1", "grep -rl non-free /etc/apt/sources.list.d") == "/etc/apt/sources.list.d/minos-nvidia.sources"
    )
    assert "multiple times" not in lab.on("node1", "apt-get update 2>&1")


def test_settings_at_boot(lab):
    unit = lab.on("node1", "systemctl cat minos-nvidia.service")
    assert "nvidia-smi --power-limit=250" in unit
    assert lab.on("node1", "systemctl is-enabled minos-nvidia.service") == "enabled"
    assert lab.on("node2", "ls /etc/systemd/system/minos-nvidia.service 2>/dev/null; true") == ""
