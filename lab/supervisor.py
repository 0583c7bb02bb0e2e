"""A container node's power supply: plugs it in, runs it, runs it again when it reboots, unplugs it when it ends.

Started by container.py as `python3 -m lab.supervisor LAB NODE`, one per node that is on.
"""

import os
import subprocess
import sys

from lab import cgroup, container, lan, network, process, state
from lab.config import LabError, Paths

REBOOT = 133  # systemd-nspawn's exit status when a node with --keep-unit reboots itself


def main(lab: str, node: str) -> int:
    paths = Paths(lab)
    while True:
        meant = state.load(paths)
        if meant is None or node not in meant.nodes:
            raise LabError(f"{paths.state} knows no {node}")
        network.plug_in(lab, node, meant.nodes[node])
        status = _run(paths, node)
        network.unplug(lab, node)
        cgroup.remove(lab, node)
        if status != REBOOT:
            return status


def _run(paths: Paths, node: str) -> int:
    """Boot the node and wait until it is off. Returns systemd-nspawn's exit status."""
    groups = cgroup.make(paths.lab, node)
    binds = lan.read_settings(paths).local_directories()
    # Should this process be killed, the node goes with it: nothing else looks after its reboots.
    command = [
        "setpriv",
        "--pdeathsig=KILL",
        *cgroup.scope(paths.lab, node),
        *container.nspawn_argv(paths, node, binds),
    ]
    environment = {
        **process.marked(paths.lab, container.power_role(node)),
        "SYSTEMD_NSPAWN_LOCK": "0",  # the lab has its own lock; nspawn's would outlive a pulled plug
        "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",  # /proc/sys/net, which ufw and site.yml set
        "SYSTEMD_NSPAWN_TMPFS_TMP": "0",  # /tmp on disk, as on a Debian server
    }
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, env=environment, preexec_fn=lambda: cgroup.enter(groups), check=False
    ).returncode


if __name__ == "__main__":
    os.chdir("/")
    sys.exit(main(*sys.argv[1:]))
