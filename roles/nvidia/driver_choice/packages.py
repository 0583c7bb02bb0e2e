"""The names of packages: each of the three archives has its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .table import TABLE

if TYPE_CHECKING:
    from .answer import Node
    from .choice import Wish

# The name without branch of Ubuntu's packages in NVIDIA's repository: https://docs.nvidia.com/datacenter/tesla/
# driver-installation-guide/recent-updates.html
UBUNTU_WITHOUT_BRANCH = 590


def names(node: Node, wish: Wish, repository: str, branch: int, flavour: str) -> list[str]:
    """Return all packages of the driver and of what was asked for beside it."""
    debian = node.system.startswith("debian")
    if repository == "nvidia":
        driver = nvidias(node, branch, flavour, debian)
    else:
        driver = debians(node, flavour) if debian else ubuntus(node, branch, flavour)
    return [*driver, *beside(wish, repository, debian)]


def debians(node: Node, flavour: str) -> list[str]:
    module = "nvidia-open-kernel-dkms" if flavour == "open" else "nvidia-kernel-dkms"
    return [module, "nvidia-smi", "libcuda1", *(["nvidia-driver"] if node.desktop else []), *headers(node)]


def ubuntus(node: Node, branch: int, flavour: str) -> list[str]:
    """Modules that Ubuntu has built and signed, where all kernels of the node have them; else DKMS."""
    variant = f"{branch}-server{'-open' if flavour == 'open' else ''}"
    signed = signed_kernels(node)
    headless = f"nvidia-headless-{'no-dkms-' if signed else ''}{variant}"
    driver = f"nvidia-driver-{variant}" if node.desktop else headless
    modules = [f"linux-modules-nvidia-{variant}-{kernel}" for kernel in signed]
    return [driver, f"nvidia-utils-{branch}-server", *(modules or headers(node))]


def nvidias(node: Node, branch: int, flavour: str, debian: bool) -> list[str]:
    pin = f"nvidia-driver-pinning-{branch}"
    if debian:
        module = "nvidia-kernel-open-dkms" if flavour == "open" else "nvidia-kernel-dkms"
        return [pin, module, "nvidia-driver-cuda", *(["nvidia-driver"] if node.desktop else []), *headers(node)]
    driver = "nvidia-open" if flavour == "open" else "cuda-drivers"
    return [pin, driver if branch >= UBUNTU_WITHOUT_BRANCH else f"{driver}-{branch}", *headers(node)]


def beside(wish: Wish, repository: str, debian: bool) -> list[str]:
    """Return what was asked for beside the driver. Ubuntu's driver brings nvidia-persistenced with it."""
    toolkit = f"cuda-toolkit-{wish.cuda.replace('.', '-')}" if repository == "nvidia" else "nvidia-cuda-toolkit"
    return [
        *(["nvidia-persistenced"] if wish.persistence and debian else []),
        *([toolkit] if wish.cuda_toolkit else []),
        *(["nvidia-container-toolkit"] if wish.container_toolkit else []),
    ]


def headers(node: Node) -> list[str]:
    """Return the meta-packages that follow each kernel; for a kernel without one, those of this version.

    The kernel that runs under a container is its host's.
    """
    running = () if node.container else (node.running,)
    return [f"linux-headers-{kernel}" for kernel in node.kernels or running]


def signed_kernels(node: Node) -> list[str]:
    """Return the kernels whose modules Ubuntu signs; none unless that are all of the node's."""
    kernels = sorted({kernel.replace("virtual", "generic") for kernel in node.kernels})
    known = tuple(TABLE["signed_kernels"])
    return kernels if kernels and all(kernel.startswith(known) for kernel in kernels) else []
