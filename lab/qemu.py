"""The command line that is a running VM node, and the question which accelerator a guest really boots on."""

import os
import subprocess
from pathlib import Path

from lab import disk, network, process, tap
from lab.config import Paths
from lab.state import LabState

QEMU = "qemu-system-x86_64"
PROBE_PATIENCE = 15.0  # seconds; with KVM it takes less than two
PROBE_SEEN = b"Run /bin/true as init process"
# What emulation spends its time on for nothing here.
SPARED = "mitigations=off audit=0 nowatchdog"


def hardware(accelerator: str, memory: int) -> list[str]:
    """The machine without its devices. The same for the probe, so that it tries what will run."""
    # A large translation cache: with the default one, three Python programs push each other's code out.
    accel = "kvm" if accelerator == "kvm" else "tcg,thread=multi,tb-size=256"
    return [
        QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-accel", accel,
        "-cpu", "host" if accelerator == "kvm" else "max", "-m", f"{memory}M",
        # Root's process, but one that can start no program and gain no right.
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
    ]  # fmt: skip


def argv(paths: Paths, state: LabState, node: str, *, snapshot: str | None = None) -> list[str]:
    """The node, switched on; if a snapshot is named, as it was in that, and not going on yet."""
    boot = disk.boot_files(paths)
    return [
        *hardware(state.accelerator, state.memory),
        "-name", f"minos-{paths.lab}-{node}",
        "-smp", str(state.processors),
        "-kernel", str(boot["vmlinuz"]), "-initrd", str(boot["initrd.img"]),
        "-append", f"root=/dev/vda ro console=ttyS0 quiet {SPARED}",
        # cache=unsafe leaves out only the wait for the host's own disk: what the guest has flushed is in the file
        # before the guest goes on, and outlives this process.
        "-drive", f"file={disk.of(paths, node)},if=none,id=root,format=qcow2,cache=unsafe,discard=unmap",
        "-device", "virtio-blk-pci,drive=root",
        "-netdev", f"tap,id=lan,ifname={tap.name(node)},script=no,downscript=no,vhost=off",
        "-device", f"virtio-net-pci,id=nic,netdev=lan,mac={network.mac(paths.lab, node)},addr=2,romfile=",
        "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,path={agent_socket(paths, node)},server=on,wait=off",
        "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
        "-qmp", f"unix:{monitor_socket(paths, node)},server=on,wait=off",
        "-rtc", "base=utc,clock=host",
        *(["-S", "-loadvm", snapshot] if snapshot else []),
    ]  # fmt: skip


def monitor_socket(paths: Paths, node: str) -> Path:
    return paths.run / "qemu" / f"{node}.monitor"


def agent_socket(paths: Paths, node: str) -> Path:
    return paths.run / "qemu" / f"{node}.agent"


def accelerator(paths: Paths) -> str:
    """ "kvm" if the nodes' kernel reaches its first program on it in time, else "tcg".

    Tried, not looked up: a /dev/kvm can exist, open, and leave every stock guest hanging.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = disk.boot_files(paths)
    command = [
        *hardware("kvm", 512), "-no-reboot", "-kernel", str(boot["vmlinuz"]), "-initrd", str(boot["initrd.img"]),
        "-append", "rdinit=/bin/true panic=-1 console=ttyS0",  # the end of the first program is a panic, and so the end
    ]  # fmt: skip
    try:
        done = subprocess.run(
            ["setpriv", "--pdeathsig=KILL", *command], stdin=subprocess.DEVNULL, capture_output=True,
            timeout=PROBE_PATIENCE, env=process.marked(paths.lab, process.HELPER),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "tcg"
    return "kvm" if done.returncode == 0 and PROBE_SEEN in done.stdout else "tcg"
