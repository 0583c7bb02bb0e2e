"""Write down how this machine is, in /var/lib/minos-before/node.json. Only Python's own library.

python3 write_down.py ASKED, a JSON object with the keys host (kept as it is), user and paths. What is kept:

    late       whether some of ours was there already, so that the rest does not tell how the machine was before
    host_name  static and pretty one
    account    the user's line in passwd and the group's in group, empty where there is none
    paths      for each: null, or owner, group, mode and whether it is a file
    units      unit -> what systemctl is-enabled says; active: those that run
    ufw        null where it is not installed, else whether it is enabled, its policy for what comes in, IPV6
"""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

RECORD = Path("/var/lib/minos-before/node.json")


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def text_of(path):
    return Path(path).read_text() if Path(path).is_file() else ""


def ours_is_there():
    folders = ("/etc/minos", "/var/lib/minos-netplan", "/opt/minos/uv")
    return any(map(os.path.exists, folders)) or " MINOS: " in text_of("/etc/hosts")


def found(path):
    """Owner, group and mode, or None."""
    path = Path(path)
    try:
        state = path.stat()
    except OSError:
        return None
    mode = f"{stat.S_IMODE(state.st_mode):04o}"
    return {"owner": state.st_uid, "group": state.st_gid, "mode": mode, "file": path.is_file()}


def ufw():
    if not Path("/etc/ufw/ufw.conf").exists():
        return None
    settings = text_of("/etc/ufw/ufw.conf") + text_of("/etc/default/ufw")
    values = dict(re.findall(r'(?m)^([A-Z0-9_]+)="?([^"\n]*)"?$', settings))
    wanted = {"enabled": "ENABLED", "policy": "DEFAULT_INPUT_POLICY", "ipv6": "IPV6"}
    return {name: values.get(key, "").lower() for name, key in wanted.items()}


def main():
    asked = json.loads(sys.argv[1])
    files = output("systemctl", "list-unit-files", "--no-legend", "--no-pager").splitlines()
    active = output("systemctl", "list-units", "--state=active", "--plain", "--no-legend", "--no-pager").splitlines()
    record = {
        "late": ours_is_there(),
        "host": asked["host"],
        "host_name": {kind: output("hostnamectl", f"--{kind}").strip() for kind in ("static", "pretty")},
        "account": {base: output("getent", base, asked["user"]).strip() for base in ("passwd", "group")},
        "paths": {path: found(path) for path in asked["paths"]},
        "units": dict(line.split()[:2] for line in files if len(line.split()) > 1),
        "active": [line.split()[0] for line in active],
        "ufw": ufw(),
    }
    os.umask(0o077)
    RECORD.parent.mkdir(exist_ok=True)
    draft = RECORD.with_suffix(".draft")
    draft.write_text(json.dumps(record, indent=1))
    draft.replace(RECORD)


main()
