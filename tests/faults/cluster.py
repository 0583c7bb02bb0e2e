"""The lab's nodes as the matrix sees them: what runs there, how a job is started, and how all is put right again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from lab.config import Paths
from tests.labs import ROOT, Lab, wait_until

JOBS, LOCAL = "/srv/minos/jobs", "/var/lib/minos/jobs"
GRACE = 20
"""node_grace of jobs on containers; the group's timeout is in job.yaml."""
SETTINGS = ("nnodes=3", "config=tests/faults/job.yaml", "job_node_stop_timeout=60", "job_follow_interval=1")
WATCH = "/var/tmp/watch.py"
AS_USER = "setpriv --reuid=minos --regid=minos --groups=minos,systemd-journal"
"""Whoever looks into the share, or at a job: on NFS root of another machine is nobody."""
JOB = yaml.safe_load((ROOT / "tests/faults/job.yaml").read_text()) | {"node_grace": GRACE}
EMULATED = {"global_batch": 24, "timeout_start": 600, "timeout_step": 90, "node_grace": 300}
"""What virtual machines get instead: where they are emulated a worker takes minutes to its first step, and the nodes
come minutes one after the other."""
EMULATED_SLOWER = 8
"""How many times as long one waits for anything there."""


def error_of(output: str) -> str:
    """What a playbook says went wrong, in one line."""
    found = re.findall(r"\[ERROR\]: (.+)|fatal: \[.*?\]: .*?\"msg\": \"(.+?)\"|\"msg\": \"(.+?)\"", output)
    said = [" ".join(filter(None, groups)) for groups in found]
    return re.sub(r"^Task failed: (Action failed: |Module failed: )?", "", said[0])[:200] if said else "no error shown"


class Training:
    """A `train.yml` that runs while the matrix does something else."""

    def __init__(self, cluster: Cluster, job: str, log: Path, follow: bool):
        self.log, self._cluster = log, cluster
        settings = " ".join([*cluster.settings, f"job={job}", f"follow={str(follow).lower()}"])
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                # A shell's background job ignores Ctrl-C, and so would this.
                ["env", "--default-signal=INT", "ansible-playbook", "-i", "inventory/lab", "train.yml", "-e", settings],
                cwd=ROOT, env=cluster.lab.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def tasks(self) -> int:
        """How many tasks it has begun."""
        return self.text().count("\nTASK [")

    def ended(self) -> bool:
        return self._process.poll() is not None

    def failed(self) -> str:
        """Why it has failed, one line; empty while it runs, and where it has not."""
        return error_of(self.text()) if self._process.poll() else ""

    def wait(self, patience: float = 400) -> int:
        """Wait for its end; returns its exit status."""
        return self._process.wait(patience * self._cluster.slower)

    def interrupt(self) -> None:
        """Ctrl-C, which a terminal sends to all its processes."""
        if not self.ended():
            os.killpg(self._process.pid, signal.SIGINT)

    def give_up(self) -> None:
        """End it, if it is still there."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.interrupt()
            self._process.wait(20 * self._cluster.slower)
        if not self.ended():
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Cluster:
    """The nodes of a lab that site.yml has made a cluster."""

    def __init__(self, lab: Lab):
        status = lab.status()
        self.lab, self.kind, self.share = lab, status["kind"], Path(status["share"])
        self.addresses = {name: node["address"] for name, node in status["nodes"].items()}
        self.nodes = list(self.addresses)
        self.head = self.nodes[0]
        groups = json.loads(lab.command("inventory").stdout)
        self.server = groups.get("nfs_server", {"hosts": [""]})["hosts"][0]
        """The node that exports the share; nothing where that is a directory of this machine."""
        instead = EMULATED if self.kind == "vm" else {}
        self.job = JOB | instead
        self.settings = (*SETTINGS, *(f"{name}={value}" for name, value in ({"node_grace": GRACE} | instead).items()))
        self.slower = EMULATED_SLOWER if self.kind == "vm" else 1
        self.tasks = 0
        """How many tasks an undisturbed train.yml begins, where one has run."""
        for node in self.nodes:
            self.write(node, WATCH, (Path(__file__).parent / "watch.py").read_text())

    @property
    def share_is_small(self) -> bool:
        """Whether the share is a file system of its own that can be filled (see own_lab)."""
        return os.path.ismount(self.share)

    def sh(self, node: str, command: str, *, check: bool = True) -> str:
        return self.lab.inside(node, command, check=check)

    def write(self, node: str, path: str, text: str) -> None:
        self.sh(node, f"cat > {path} <<'END-OF-FILE'\n{text}\nEND-OF-FILE")

    def everywhere(self, command: str, nodes: Collection[str] = ()) -> dict[str, str]:
        """Run a command on all nodes at once, or on these; what each said, nothing where it is off."""
        nodes = list(nodes or self.nodes)
        with ThreadPoolExecutor(len(nodes)) as pool:
            return dict(zip(nodes, pool.map(lambda node: self.sh(node, command, check=False), nodes), strict=True))

    def watch(self, node: str, job: str, *question: object, patience: float = 120) -> dict | None:
        """What watch.py has seen on `node`; None if it has waited in vain, or the node went off."""
        words = " ".join(f"'{word}'" for word in (job, patience * self.slower, *question))
        said = self.sh(node, f"exec {AS_USER} python3 {WATCH} {words}", check=False)
        return json.loads(said) if said.startswith("{") else None

    def ended(self, job: str, patience: float) -> dict:
        """The state file of a job that has ended; {} if it does not. Any node may be off meanwhile."""
        deadline = time.monotonic() + patience * self.slower
        while time.monotonic() < deadline:
            for node in reversed(self.nodes):
                if answer := self.watch(node, job, "ended", patience=10):
                    return answer["state"]
            time.sleep(1)
        return {}

    def shared(self, command: str, *, node: str = "", check: bool = True) -> str:
        """Run a shell's command that needs the share, on the head or on this node."""
        return self.sh(node or self.head, f"{AS_USER} sh -c {shlex.quote(command)}", check=check)

    def read(self, path: str) -> str:
        """A file of the share, empty where there is none."""
        return self.shared(f"cat {path} 2>/dev/null", check=False)

    # --- jobs ----------------------------------------------------------------------------------------------------
    def train(self, job: str, log: Path, *, follow: bool = False) -> Training:
        return Training(self, job, log, follow)

    def busy(self, job: str) -> dict[str, str]:
        """What is left of a job's units and workers, by node; also that a node cannot be asked."""
        ask = (
            "systemctl list-units --plain --no-legend --state=active,activating,deactivating"
            f" minos-train@{job}.service | cut -c1-80; python3 {WATCH} {job} 0 workers;"
            " echo asked"
        )
        said = {
            node: text if text.endswith("asked") else "it does not answer"
            for node, text in self.everywhere(ask).items()
        }
        return {node: left for node, text in said.items() if (left := text.removesuffix("asked").strip())}

    def forget(self, *jobs: str) -> None:
        """Remove every trace of jobs of the matrix."""
        on_node = "; ".join(
            f"systemctl kill --signal=KILL minos-train@{job}; systemctl disable --now minos-train@{job};"
            f" umount --lazy {LOCAL}/{job}; rm -rf {LOCAL}/{job} /etc/minos/jobs/{job}.env"
            for job in jobs
        )
        self.everywhere(f"exec 2>/dev/null; {on_node}; systemctl reset-failed 'minos-train*'; true")
        self.shared("rm -rf " + " ".join(f"{JOBS}/{job}" for job in jobs))

    # --- machines ------------------------------------------------------------------------------------------------
    def power(self, nodes: Collection[str], *, on: bool) -> None:
        for node in nodes:
            self.lab.command("start" if on else "kill", node)

    def reboot(self, nodes: Collection[str]) -> None:
        """Tell them to; they go down cleanly, all at once."""
        self.everywhere("systemctl --no-block reboot", nodes)

    def boots(self) -> dict[str, str]:
        """What is another after each boot of a node; nothing while it is off."""
        return self.everywhere("systemctl show --property=UserspaceTimestampMonotonic --value")

    def wait_for_boot(self, nodes: Collection[str], before: dict[str, str], patience: float = 300) -> None:
        """Until these nodes have booted anew and let their owner in."""

        def is_back(node: str) -> bool:
            boot = self.sh(node, "systemctl show --property=UserspaceTimestampMonotonic --value", check=False)
            if boot in ("", before[node]):
                return False
            return self.lab.command("ssh", node, "true", check=False).returncode == 0

        for node in nodes:
            wait_until(lambda node=node: is_back(node), patience * self.slower, pause=0.5)

    def put_right(self) -> None:
        """Every node on, with its cable in and its link unlimited."""
        nodes = self.lab.nodes()
        if any(node["power"] != "on" for node in nodes.values()):
            self.lab.command("up")
        for name, node in nodes.items():
            if not node["cable"]:
                self.lab.command("cable", name, "up")
            if node["bandwidth"]:
                self.lab.command("bandwidth", name, "none")

    def wait_for_units(self) -> None:
        """Until what a boot starts has been started, also where something else of it has failed."""
        self.everywhere(f"timeout {60 * self.slower} systemctl is-system-running --wait")


@contextlib.contextmanager
def own_lab(lab: Lab, kind: str, up: Collection[str] = (), site: Collection[str] = ()) -> Iterator[Cluster]:
    """A lab from nothing to a cluster, and down again; `up` and `site`: what its two commands get besides.

    The share of container nodes is put on a file system of its own, in memory: only that can be filled without filling
    this machine's disk. The nodes must be off for it, as they keep what they saw there when they started.
    """
    left = Paths(lab.name).share
    if os.path.ismount(left):  # by one that was killed; the nodes hold it
        for node in lab.nodes():
            lab.command("kill", node)
        as_root("umount", str(left))
    lab.command("down")
    share, nodes = None, ()
    try:
        lab.command("up", "-n", "3", "--kind", kind, *(["--server", "node3"] if kind == "vm" else []), *up)
        if kind == "container":
            status = lab.status()
            share, nodes = Path(status["share"]), tuple(status["nodes"])
            for node in nodes:
                lab.command("kill", node)
            mount_small(share)
            lab.command("up")
        lab.playbook("site.yml", *site)
        yield Cluster(lab)
    finally:
        for node in nodes:
            lab.command("kill", node, check=False)
        if share:
            as_root("umount", str(share), check=False)
        lab.command("down")


SHARE_SIZE = "6g"


def mount_small(share: Path) -> None:
    mode = oct(share.stat().st_mode & 0o7777)[2:]
    as_root("mount", "-t", "tmpfs", "-o", f"size={SHARE_SIZE},mode={mode}", "minos-faults", str(share))


def as_root(*command: str, check: bool = True) -> str:
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    done = subprocess.run([*sudo, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
