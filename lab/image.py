"""The base images: a bare Debian server as its installer leaves it, made once, kept as a tar file.

What a node needs beyond that is what site.yml is there to install.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import hostsettings, process
from lab.config import NODE_USER, LabError, Paths
from lab.hostsettings import HostSettings

SUITES = ("bookworm", "trixie")  # Debian 12, which everything is tried on, and 13
MIRRORS = {"main": "http://deb.debian.org/debian", "security": "http://deb.debian.org/debian-security"}
PACKAGES = (
    "apt-utils", "ca-certificates", "cron", "dbus", "debian-archive-keyring", "init", "iproute2",
    "iputils-ping", "kmod", "less", "libpam-systemd", "logrotate", "nano", "netbase", "openssh-server",
    "openssl", "procps", "python3", "sudo", "systemd", "systemd-sysv", "tzdata",
)  # fmt: skip
# Half of a small Debian's files; without them a node is made in half the time. The same rule stays in the nodes.
LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*")
# In the image's root ($1), after its packages. Host keys are each node's own; the user is the installer's first one.
FINISH = f"""
set -e
rm -f "$1"/etc/ssh/ssh_host_*_key* "$1"/etc/hostname "$1"/etc/resolv.conf "$1"/etc/apt/apt.conf.d/99mmdebstrap
chroot "$1" useradd --create-home --shell /bin/bash {NODE_USER}
echo '{NODE_USER} ALL=(ALL) NOPASSWD: ALL' > "$1"/etc/sudoers.d/{NODE_USER}
chmod 0440 "$1"/etc/sudoers.d/{NODE_USER}
echo 'LANG=C.UTF-8' > "$1"/etc/default/locale
mkdir -p "$1"{"/srv/minos"}
"""


@dataclass(frozen=True)
class Recipe:
    """What one kind of node has of its own."""

    suite: str = SUITES[0]
    packages: tuple[str, ...] = ()
    before: str = ""
    """Shell commands in the image's root ($1) before these packages are installed."""
    finish: str = ""
    """The same at the end."""


CONTAINER = Recipe(finish='chroot "$1" systemctl enable systemd-networkd.service\n')
# A kernel of its own, which has NFS, and what Debian's installer puts around one. MODULES=list: the initial RAM disk
# holds the drivers of these machines only, so that one boots without a hardware accelerator in bearable time.
VM = Recipe(
    packages=(
        "e2fsprogs", "ifupdown", "initramfs-tools", "isc-dhcp-client", "linux-image-cloud-amd64", "qemu-guest-agent",
        "systemd-timesyncd", "udev",
    ),
    before="""
set -e
mkdir -p "$1"/etc/initramfs-tools/conf.d "$1"/usr/share/initramfs-tools/modules.d
echo MODULES=list > "$1"/etc/initramfs-tools/conf.d/lab
echo RESUME=none >> "$1"/etc/initramfs-tools/conf.d/lab
printf '%s\n' virtio_pci virtio_blk ext4 > "$1"/usr/share/initramfs-tools/modules.d/lab
""",
)  # fmt: skip


def ensure(paths: Paths, settings: HostSettings, recipe: Recipe) -> Path:
    """The image's tar file, made now if it is not in the cache."""
    sources = _sources(recipe.suite, _host_mirrors())
    packages, finish = PACKAGES + recipe.packages, FINISH + recipe.finish
    text = "\n".join([recipe.suite, " ".join(packages), " ".join(LEFT_OUT), sources, recipe.before + finish, machine()])
    image = paths.cache / f"base-{hashlib.sha256(text.encode()).hexdigest()[:16]}.tar"
    if image.exists():
        return image
    paths.cache.mkdir(parents=True, exist_ok=True)
    with _one_builder(paths.cache):
        if not image.exists():  # another lab may have made it while this one waited
            _sweep(paths.cache)
            _build(paths, settings, recipe, sources, image)
    return image


def _build(paths: Paths, settings: HostSettings, recipe: Recipe, sources: str, image: Path) -> None:
    started = time.monotonic()
    print(f"lab: making the base image (Debian {recipe.suite}), once; a minute or two ...", flush=True)
    workshop = paths.cache / "building"
    workshop.mkdir()
    (workshop / "debian.sources").write_text(sources)
    log, tar = workshop / "log", workshop / "image.tar"
    proxies = [f'--aptopt=Acquire::{scheme}::Proxy "{url}"' for scheme, url in settings.apt_proxy.items()]
    exclusions = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    # In namespaces of its own, tied to this process's life: killed at any moment it leaves no process and no
    # mount behind, only the workshop, which the next command sweeps.
    command = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
               "mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar",
               f"--include={','.join(PACKAGES + recipe.packages)}", f"--essential-hook={recipe.before or 'true'}",
               f"--customize-hook={FINISH}{recipe.finish}", *exclusions, *proxies,
               recipe.suite, str(tar), str(workshop / "debian.sources")]  # fmt: skip
    environment = {**process.marked(paths.lab, process.HELPER), **settings.proxy_env, "TMPDIR": str(workshop)}
    with log.open("wb") as output:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    if done.returncode != 0:
        words = log.read_text(errors="replace").strip().splitlines()
        reasons = [line for line in words if line.startswith("E:")] or words[-1:] or ["no message"]
        raise LabError(f"mmdebstrap could not make the base image: {reasons[0]} (all of it: {log})")
    with tar.open("rb") as file:
        os.fsync(file.fileno())
    tar.rename(image)
    shutil.rmtree(workshop)
    print(f"lab: base image made in {time.monotonic() - started:.0f} s: {image}", flush=True)


def purge(paths: Paths) -> None:
    """Remove the cache with all images."""
    shutil.rmtree(paths.cache, ignore_errors=True)


def sweep(paths: Paths) -> None:
    """Remove what a killed image build left, unless somebody is building now."""
    if (paths.cache / "building").exists():
        with _one_builder(paths.cache):
            _sweep(paths.cache)


def _sweep(cache: Path) -> None:
    shutil.rmtree(cache / "building", ignore_errors=True)


@contextmanager
def _one_builder(cache: Path) -> Iterator[None]:
    """A lock on the directory itself: no file for it."""
    descriptor = os.open(cache, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sources(suite: str, mirrors: dict[str, str]) -> str:
    mirrors = {**MIRRORS, **mirrors}
    signed = "Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    return (
        f"Types: deb\nURIs: {mirrors['main']}\nSuites: {suite} {suite}-updates\n{signed}\n"
        f"Types: deb\nURIs: {mirrors['security']}\nSuites: {suite}-security\n{signed}"
    )


def _host_mirrors() -> dict[str, str]:
    """The host's own Debian mirror, where it is a Debian; an Ubuntu mirror has no Debian on it."""
    release = Path("/etc/os-release").read_text()
    if "\nID=debian\n" not in f"\n{release}\n":
        return {}
    codename = next((line.split("=")[1] for line in release.splitlines() if line.startswith("VERSION_CODENAME=")), "")
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n\n".join(file.read_text(errors="replace") for file in files if file.is_file())
    return hostsettings.apt_mirrors(text, codename)


def machine() -> str:
    return os.uname().machine
