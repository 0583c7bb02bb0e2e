"""Say what there is of ours on this machine; prints one JSON object. Changes nothing. Only Python's own library.

python3 look.py ASKED, a JSON object with the keys user, shared, state and environment (paths). The answer:

    ours     whether anything of ours is here
    before   what role node_before has written down, or what is known without it (late: true)
    unknown  of state and environment those of which nobody wrote down whether they were there before
    packages names that came with us, and those that went for them
    running  jobs that run now
    identity which machine this is, and which boot of it
    shared, state   answers (a share may hang), and what is kept there: names of jobs and models, size, uid of its owner
    owners   the same of those folders in the share that are not ours as far as its mark tells
"""

import json
import re
import subprocess
import sys
from pathlib import Path

BEFORE = Path("/var/lib/minos-before")
NOTHING = {"late": True, "host": "", "host_name": {"static": "", "pretty": ""}, "paths": {}, "units": {}, "active": []}
TRACES = (
    *("/etc/minos", "/opt/minos/uv", "/var/lib/minos-before", "/var/lib/minos-netplan", "/etc/exports.d/minos.exports"),
    *("/etc/systemd/system/minos-store.service", "/etc/ssh/sshd_config.d/10-minos.conf", "/etc/netplan/60-minos.yaml"),
    *("/usr/local/sbin/minos-sshd", "/usr/local/sbin/minos-netplan"),
)


def output(*command, patience=None):
    """What it says, or None where it takes too long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience).stdout
    except FileNotFoundError:
        return ""
    except subprocess.TimeoutExpired:
        return None


def before(account):
    file = BEFORE / "node.json"
    record = json.loads(file.read_text()) if file.exists() else {"late": True}
    if not record["late"]:
        return record
    # Of ours there was something already, or nobody wrote anything down: only what is ours by its looks goes.
    kept = {base: "" if ":Minos training:" in account["passwd"] else line for base, line in account.items()}
    return NOTHING | {"account": kept, "ufw": None}


def packages():
    file = BEFORE / "packages"
    lines = file.read_text().splitlines() if file.exists() else []
    words = sorted({tuple(line.split()) for line in lines})
    found = {kind: [name for each, name in words if each == kind] for kind in ("new", "gone")}
    here = output("dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\n") or ""
    installed = set(re.findall(r"(?m)^installed (.+)$", here))
    return {
        "new": [name for name in found["new"] if name in installed],
        "gone": [name for name in found["gone"] if name not in installed],
    }


def first(file):
    return Path(file).read_text().strip() if Path(file).exists() else ""


def folders(share):
    """Those in the share that are not ours, and those that are, as its mark tells."""
    said = output("sh", "-c", 'sed -n "s/^made //p" "$0/.minos-shared" 2>/dev/null', share, patience=20)
    return [[part for part in ("jobs", "models") if (part in (said or "").split()) == ours] for ours in (False, True)]


def kept(folder, *parts):
    """What is in the folder's parts, asked by another process: it may hang where this one must not.

    The size apart: to add up a hundred thousand files takes a slow disk longer than it may take a share to answer.
    """
    there = 'cd "$0" 2>/dev/null && [ $# -gt 0 ] || exit 0; '
    script = 'for part; do ls -1d "$part"/*/ 2>/dev/null; done; stat --format %u "$1" 2>/dev/null'
    said = output("sh", "-c", there + script, folder, *parts, patience=20)
    lines = (said or "").splitlines()
    names = [line.rstrip("/") for line in lines if "/" in line]
    uid = lines[-1] if lines[len(names) :] else ""
    added = 'du -sch "$@" 2>/dev/null | cut -f 1 | tail -n 1'
    size = (output("sh", "-c", there + added, folder, *parts, patience=30) or "").strip() if names else ""
    return {"answers": said is not None, "names": names, "size": size or "nobody waited for its size", "uid": uid}


def main():
    asked = json.loads(sys.argv[1])
    account = {base: (output("getent", base, asked["user"]) or "").strip() for base in ("passwd", "group")}
    units = output("systemctl", "list-units", "--plain", "--no-legend", "--no-pager", "minos-train@*") or ""
    running = re.findall(r"(?m)^minos-train@(\S+)\.service\s+\S+\s+(?:active|activating|deactivating)\s", units)
    known = before(account)
    theirs, ours = folders(asked["shared"])
    own = (asked["state"], asked["environment"])
    print(
        json.dumps(
            {
                "ours": any(Path(trace).exists() for trace in TRACES) or ":Minos training:" in account["passwd"],
                "before": known,
                "unknown": [path for path in own if path not in known["paths"] and Path(path).exists()],
                "packages": packages(),
                "running": running,
                "identity": {"machine": first("/etc/machine-id"), "boot": first("/proc/sys/kernel/random/boot_id")},
                "shared": kept(asked["shared"], *ours),
                "owners": kept(asked["shared"], *theirs),
                "state": kept(asked["state"], "jobs"),
            }
        )
    )


main()
