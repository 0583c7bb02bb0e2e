"""What a lab could leave on a host, as JSON: `python3 traces.py LAB`, as root. Knows the lab's name, not its tool.

Two lists: `ours` mentions the lab by name and must be empty without it; `host` is the host's own network and
firewall, which a lab must never change, whether it is up or not.
"""

import json
import re
import subprocess
import sys
from pathlib import Path


def output(*argv: str) -> list[str]:
    try:
        return subprocess.run(argv, capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        return []


def processes(name: str) -> list[str]:
    """Those that mention the lab anywhere: words, environment, control group, or a file system made of its files."""
    mention = re.compile(
        rf"minos-lab[/.]{name}\b|minos-{name}\b|minos-lab-{name}\b|MINOS_LAB_PROCESS={name}/|lab\.supervisor\0{name}\b"
    )
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            told = [(entry / file).read_bytes().decode(errors="replace") for file in ("cmdline", "environ", "cgroup")]
            told += [line.split()[3] for line in (entry / "mountinfo").read_text().splitlines() if " / " in line]
        except OSError:
            continue
        if mention.search("\n".join(told)):
            found.append(f"{entry.name} {told[0]}".replace("\0", " ").strip())
    return found


def files(name: str, cache: str) -> list[str]:
    patterns = {
        "/var/lib/minos-lab": (f"{name}*", f".{name}*"),
        "/run/minos-lab": (f"{name}*",),
        "/run": (f"minos-lab-{name}*",),
        "/run/netns": (f"minos-{name}*",),
        "/run/systemd/nspawn": (f"**/*minos-{name}-*",),
        "/run/systemd/transient": (f"*minos*{name}*",),
        "/sys/fs/cgroup": (f"**/minos-lab.{name}", f"**/minos_lab_{name}.slice"),
        cache: ("building*",),
    }
    return sorted(str(path) for top, globs in patterns.items() for glob in globs for path in Path(top).glob(glob))


def traces(name: str, cache: str) -> dict[str, dict[str, list[str]]]:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return {
        "ours": {
            "processes": processes(name),
            "files": files(name, cache),
            "mounts": [line for line in mounts if name in line],
        },
        "host": {
            "links": sorted(re.sub(r"^\d+: ", "", line) for line in output("ip", "-o", "link")),
            "addresses": output("ip", "-br", "address"),
            "routes": output("ip", "route", "show", "table", "all"),
            "firewall": output("nft", "list", "ruleset"),
            "forwarding": [Path("/proc/sys/net/ipv4/ip_forward").read_text()],
        },
    }


if __name__ == "__main__":
    print(json.dumps(traces(*sys.argv[1:])))
