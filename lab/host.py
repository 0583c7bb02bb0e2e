"""What the lab needs from the host: root, a few packages. Says what and why before it changes anything."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lab import hostsettings
from lab.config import LabError
from lab.hostsettings import HostSettings

SETTINGS_OPTION = "--host-settings"
CLONE = Path(__file__).resolve().parent.parent

# tool -> (Debian and Ubuntu package, what for)
Tools = dict[str, tuple[str, str]]
# What every kind of node needs, and what each kind needs beyond it.
TOOLS: Tools = {
    "mmdebstrap": ("mmdebstrap", "makes the nodes' Debian image"),
    "slirp4netns": ("slirp4netns", "the nodes' way out, for apt and pip"),
    "nft": ("nftables", "the LAN's router"),
    "ip": ("iproute2", "the LAN's wires"),
    "socat": ("socat", "SSH into the lab without being root"),
    "ssh": ("openssh-client", "logs in to the nodes"),
    "sysctl": ("procps", "the LAN's router"),
    "tar": ("tar", "unpacks the image"),
}
CONTAINER_TOOLS: Tools = {"systemd-nspawn": ("systemd-container", "boots the nodes")}
VM_TOOLS: Tools = {
    "qemu-system-x86_64": ("qemu-system-x86", "the nodes' hardware"),
    "qemu-img": ("qemu-utils", "the nodes' disks"),
    "mke2fs": ("e2fsprogs", "the nodes' file systems"),
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def owner() -> int:
    """uid of the person behind this command, also behind sudo."""
    return int(os.environ.get("SUDO_UID", os.getuid())) if os.getuid() == 0 else os.getuid()


def settings_of_caller() -> HostSettings:
    return hostsettings.gather(dict(os.environ), Path(pwd.getpwuid(os.getuid()).pw_dir))


def become_root(arguments: list[str]) -> None:
    """Return as root, or start over through sudo, with the caller's pip and proxy settings, which sudo drops."""
    if os.getuid() == 0:
        return
    if shutil.which("sudo") is None:
        raise LabError("the lab needs root and there is no sudo here: run the same command as root")
    print(f"lab: the lab needs root, so: sudo {Path(sys.executable).name} -m lab {' '.join(arguments)}", flush=True)
    with tempfile.NamedTemporaryFile("w", prefix="minos-lab-", suffix=".json") as file:  # 0600
        json.dump({"settings": settings_of_caller().to_json()}, file)
        file.flush()
        # -B: no bytecode of root's in the user's clone
        kept = [f"{name}={os.environ[name]}" for name in ("MINOS_LAB", "MINOS_LAB_CACHE") if name in os.environ]
        command = ["sudo", "--", "env", *kept, sys.executable, "-B", "-m", "lab",
                   SETTINGS_OPTION, file.name, *arguments]  # fmt: skip
        raise SystemExit(subprocess.run(command, cwd=CLONE).returncode)


def handed_over(file: str | None) -> HostSettings:
    """The settings of the caller: read from the file that `become_root` wrote, else this process's own."""
    if file is None:
        return settings_of_caller()
    return HostSettings.from_json(json.loads(Path(file).read_text())["settings"])


def missing(tools: Tools = TOOLS) -> dict[str, str]:
    """Packages to install -> why."""
    wanted = {package: why for tool, (package, why) in tools.items() if shutil.which(tool) is None}
    if not KEYRING.exists():
        wanted["debian-archive-keyring"] = "checks the signatures of the nodes' packages"
    return wanted


def install_missing(tools: Tools = TOOLS) -> None:
    """Install what is missing by apt, saying so. Raises LabError where there is no apt."""
    wanted = missing(tools)
    if not wanted:
        return
    for package, why in wanted.items():
        print(f"lab: this host lacks {package}: {why}", flush=True)
    names = sorted(wanted)
    if shutil.which("apt-get") is None:
        raise LabError(f"install these first, this host has no apt-get: {' '.join(names)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", *names]
    print(f"lab: {' '.join(install)}", flush=True)
    if subprocess.run(install, env=environment, capture_output=True).returncode == 0:
        return
    print("lab: that failed, mostly for an old or empty package list: apt-get update, then again", flush=True)
    subprocess.run(["apt-get", "update", "-q"], env=environment, stdout=subprocess.DEVNULL)
    if subprocess.run(install, env=environment, stdout=subprocess.DEVNULL).returncode != 0:
        raise LabError(f"apt-get could not install {' '.join(names)}; its own words are above")


def check_devices() -> None:
    """Raise LabError for what no package can mend."""
    if not Path("/dev/net/tun").exists():
        subprocess.run(["modprobe", "tun"], capture_output=True)
    if not Path("/dev/net/tun").exists():
        raise LabError("/dev/net/tun is missing: the nodes' way out needs the kernel module tun (modprobe tun)")
