"""What a machine is like, and how it differs later: for the promise that playbooks/reset.yml gives it back as it was.

    before = take(execute)           # execute(*argv) runs a command as root on the node, and returns its output
    ...
    assert differences(before, take(execute)) == []

What may differ stands in EXPLAINED, each with its reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

# (what, where as a pattern, why it may differ)
EXPLAINED = (
    ("files", r"/etc/(passwd|group|shadow|gshadow|subuid|subgid)-", "the system's own copy of before its last change"),
    ("files", r"/etc/ld\.so\.cache", "an index of the libraries, written anew with every package"),
    ("files", r"/etc/\.pwd\.lock", "empty, left by whatever adds an account"),
    ("own", r"/(root|home/\w+)/\.ansible(/tmp)?", "Ansible's own, empty"),
    ("units", r"netplan-ovs-cleanup\.service", "in /run, written by netplan's generator: gone with the next boot"),
    ("active", r"systemd-(hostnamed|timedated|localed)\.service", "started by a question, stops by itself"),
    ("active", r"systemd-networkd-wait-online\.service", "ran at a boot since, for units that were there then"),
    ("active", r"(user@|user-runtime-dir@|run-user-)\d+\.(service|mount)", "somebody's login, here Ansible's"),
)

# On the node; only Python's own library. No times and no sizes: equal content is equal.
LOOK = r"""
import hashlib, json, os, stat, subprocess

def said(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError:
        return "absent"
    return done.stdout if done.returncode == 0 else f"{done.stdout}{done.stderr}(status {done.returncode})"

def lines(text, key=0):
    return {line.split()[key]: " ".join(line.split()) for line in text.splitlines() if line.strip()}

def one(path):
    found = os.lstat(path)
    kind, who = stat.filemode(found.st_mode), f"{found.st_uid}:{found.st_gid}"
    if stat.S_ISLNK(found.st_mode):
        return f"link to {os.readlink(path)}"
    if stat.S_ISREG(found.st_mode):
        with open(path, "rb") as stream:
            return f"{kind} {who} {hashlib.sha256(stream.read()).hexdigest()[:16]}"
    return f"{kind} {who}"

def tree(top, depth=99):
    if os.path.lexists(top):
        yield top
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in FOREIGN]
        for name in folders + files:
            yield os.path.join(folder, name)
        if folder[len(top):].count("/") >= depth - 1:
            folders.clear()

# What is mounted there is another machine's, or the lab's.
mounts = json.loads(said("findmnt", "--json", "--list", "--output", "TARGET,SOURCE,FSTYPE"))["filesystems"]
FOREIGN = {each["target"] for each in mounts} | set(WITHOUT)

def accounts(file, hide):
    # Of a password only whether there is one, and not when it was last changed.
    for line in open(file):
        name, *fields = line.rstrip("\n").split(":")
        hidden = ["set" if number in hide and field[:1] == "$" else field for number, field in enumerate(fields)]
        yield name, ":".join(hidden)

def shadow():
    for name, rest in accounts("/etc/shadow", {0}):
        fields = rest.split(":")
        yield name, ":".join([fields[0], "", *fields[2:]])

# Looked at by their lines below.
ACCOUNTS = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow")
OWN = ("/usr/local", "/opt", "/srv", "/root", "/home")
SHALLOW = ("/", "/var", "/var/lib", "/var/cache", "/var/log", "/var/spool")
units = json.loads(said("systemctl", "list-unit-files", "--output=json", "--no-pager"))
active = said("systemctl", "list-units", "--state=active", "--plain", "--no-legend", "--no-pager")
print(json.dumps({
    "files": {path: one(path) for path in tree("/etc") if path not in ACCOUNTS},
    "folders": {path: one(path) for top in SHALLOW for path in tree(top, 1) if stat.S_ISDIR(os.lstat(path).st_mode)},
    "own": {path: one(path) for top in OWN for path in tree(top)},
    "users": dict(accounts("/etc/passwd", set())),
    "groups": dict(accounts("/etc/group", set())),
    "passwords": dict(shadow()),
    "packages": dict(line.split("\t") for line in
                     said("dpkg-query", "--show", "--showformat", "${Package}\t${db:Status-Abbrev}\n").splitlines()),
    "wanted packages": lines(said("apt-mark", "showmanual")),
    "ufw": {"status": said("ufw", "status", "verbose"), "added": said("ufw", "show", "added")},
    "mounts": {each["target"]: f"{each['source']} {each['fstype']}" for each in mounts
               if not each["target"].startswith(("/proc", "/sys", "/dev", "/run"))},
    "units": {each["unit_file"]: each["state"] for each in units if each["state"] != "transient"},
    "active": {line.split()[0]: "active" for line in active.splitlines()
               if line.split()[0].endswith((".service", ".timer", ".socket", ".mount", ".automount"))},
    "network": {
        "addresses": "\n".join(" ".join(line.split()[1:5]) for line in said("ip", "-oneline", "address").splitlines()),
        "routes": said("ip", "route"), "resolv.conf": said("cat", "/etc/resolv.conf"),
    },
    "host name": {"kernel": said("uname", "-n"), "hostnamectl": said("hostnamectl", "--static")},
}))
"""


def take(execute: Callable[..., str], without: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Read everything from the node but the directories `without`; a theme each, name -> state."""
    return json.loads(execute("python3", "-c", f"WITHOUT = {tuple(without)!r}\n{LOOK}"))


def differences(
    before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]], explained=EXPLAINED
) -> list[str]:
    """List what differs and is not explained, a line each."""
    found = []
    for theme, old in before.items():
        new = after[theme]
        for name in sorted({*old, *new}):
            was, now = old.get(name, "absent"), new.get(name, "absent")
            known = any(theme == about and re.fullmatch(pattern, name) for about, pattern, _ in explained)
            if was != now and not known:
                found.append(f"{theme}: {name}: {was!r} is now {now!r}")
    return found
