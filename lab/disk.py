"""A VM node's disk: the tree that a container node would run on, made into a file system, under a qcow2 overlay.

The overlay is there for snapshots of a running machine, memory and disk together, which only qcow2 can hold.
"""

import shutil
import tarfile
import uuid
from pathlib import Path

from lab import process, rootfs
from lab.config import Paths
from lab.files import remove_tree
from lab.hostsettings import HostSettings
from lab.state import LabState

NIC = "enp0s2"  # as udev names the network card in the second slot of QEMU's q35 board
INTERFACES = """\
# This file describes the network interfaces available on your system
# and how to activate them. For more information, see interfaces(5).

source /etc/network/interfaces.d/*

# The loopback network interface
auto lo
iface lo inet loopback

# The primary network interface
allow-hotplug {nic}
iface {nic} inet static
\taddress {address}/24
\tgateway {gateway}
\t# dns-* options are implemented by the resolvconf package, if installed
\tdns-nameservers {gateway}
"""


def of(paths: Paths, node: str) -> Path:
    return paths.nodes / node / "disk.qcow2"


def boot_files(paths: Paths) -> dict[str, Path]:
    """The kernel and its initial RAM disk, on the host: QEMU loads them itself, no boot loader is emulated."""
    return {name: paths.nodes / name for name in ("vmlinuz", "initrd.img")}


def extract_boot_files(paths: Paths, image: Path) -> None:
    """Out of the image. Found half-made, they are made anew."""
    with tarfile.open(image) as archive:
        for member in archive:
            for name, file in boot_files(paths).items():
                if member.name.startswith(f"./boot/{name}-"):
                    draft = file.with_name(f"draft-{name}")
                    with draft.open("wb") as written:
                        shutil.copyfileobj(archive.extractfile(member), written)
                    draft.rename(file)


def create(paths: Paths, state: LabState, settings: HostSettings, image: Path, node: str) -> None:
    """Make the node's disk. It gets its final name last: a disk that exists is complete."""
    final = of(paths, node)
    root, system, draft = (final.with_name(name) for name in ("draft", "system.img", "draft.qcow2"))
    rootfs.unpack(paths, state, settings, image, node, root)
    if state.layer:
        rootfs.unpack_tar(paths, state.layer, root)
    identity = uuid.uuid4()
    rootfs.write(root / "etc/fstab", f"UUID={identity} / ext4 errors=remount-ro 0 1\n")
    address = state.nodes[node].address
    interfaces = INTERFACES.format(nic=NIC, address=address, gateway=state.gateway)
    rootfs.write(root / "etc/network/interfaces", interfaces)
    for leftover in (system, draft):
        leftover.unlink(missing_ok=True)
    process.run(
        paths.lab, "mke2fs", "-q", "-t", "ext4", "-m", "1", "-U", str(identity), "-d", root,
        "-E", "assume_storage_prezeroed=1", system, f"{state.disk}G",
    )  # fmt: skip
    remove_tree(root)
    process.run(paths.lab, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", system.name, draft)
    draft.rename(final)
