"""`python3 -m lab VERB ...`: arguments in, one line out when something is wrong."""

import argparse
import os
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from lab import host, image, inventory, verbs
from lab import state as states
from lab.config import DEFAULT_NODES, MAX_NODES, LabError, Paths, lab_name
from lab.kinds import KINDS

NEEDS_NO_ROOT = {"ssh", "inventory", "next"}


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"lab: {message}; see: python3 -m lab {'' if self.prog.endswith(' lab') else self.verb} --help\n")

    @property
    def verb(self) -> str:
        return self.prog.rpartition(" ")[2]


def node_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_NODES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of nodes from 1 to {MAX_NODES}")
    return int(text)


def rate(text: str) -> str | None:
    if text != "none" and not re.fullmatch(r"[1-9]\d*(\.\d+)?(kbit|mbit|gbit)", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no rate: write for example 100mbit, 2.5gbit, 500kbit or none")
    return None if text == "none" else text


def size(least: int, most: int) -> Callable[[str], int]:
    def checked(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return int(text)

    return checked


def snapshot_name(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: use small letters, digits, - and _, a letter first")
    return text


def package_names(text: str) -> list[str]:
    names = sorted(text.split(","))
    if wrong := [name for name in names if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", name)]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is no name of a Debian package; write A,B,C")
    return names


def tar_file(text: str) -> str:
    if not Path(text).is_file() or not tarfile.is_tarfile(text):
        raise argparse.ArgumentTypeError(f"{text} is no tar file")
    return str(Path(text).absolute())


def parser() -> argparse.ArgumentParser:
    top = OneLineParser(prog="python3 -m lab", description="Throw-away nodes on this machine.")
    top.add_argument(host.SETTINGS_OPTION, help=argparse.SUPPRESS)
    verb = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    up = verb.add_parser("up", help="make the lab, or bring back what is off or half made")
    up.add_argument("-n", dest="count", type=node_count, metavar="N", help=f"how many nodes (default: {DEFAULT_NODES})")
    up.add_argument("--kind", choices=sorted(KINDS), help="what the nodes are made of (default: container)")
    up.add_argument("--suite", choices=image.SUITES, help=f"the Debian on the nodes (default: {image.SUITES[0]})")
    up.add_argument("--memory", type=size(512, 65536), metavar="MIB", help="of a VM node (default: 2048)")
    up.add_argument("--disk", type=size(4, 1024), metavar="GIB", help="of a VM node (default: 16)")
    up.add_argument("--packages", type=package_names, metavar="A,B", help="Debian packages that VM nodes have already")
    up.add_argument("--layer", type=tar_file, metavar="TAR", help="is unpacked over the disk of every VM node")
    up.add_argument("--server", metavar="NODE", help="which VM node exports the shared directory (default: the first)")
    down = verb.add_parser("down", help="remove every trace of the lab")
    down.add_argument("--purge", action="store_true", help="the cached base image too")
    verb.add_parser("status", help="what is on").add_argument("--json", action="store_true")
    ssh = verb.add_parser("ssh", help="log in to a node, or run a command there, as its user")
    run = verb.add_parser("exec", help="run a command as root in a node, without SSH; node `lan`: outside, on the LAN")
    for several in (ssh, run):
        several.add_argument("node", metavar="NODE")
        several.add_argument("command", nargs=argparse.REMAINDER, metavar="...")
    kill = verb.add_parser("kill", help="pull a node's plug")
    kill.add_argument("node", metavar="NODE")
    kill.add_argument("--off", "--clean", action="store_true", dest="clean", help="shut it down cleanly instead")
    verb.add_parser("start", help="switch a node on").add_argument("node", metavar="NODE")
    cable = verb.add_parser("cable", help="pull or plug a node's network cable")
    cable.add_argument("node", metavar="NODE")
    cable.add_argument("position", choices=["down", "up"])
    bandwidth = verb.add_parser("bandwidth", help="limit a node's link, both ways")
    bandwidth.add_argument("node", metavar="NODE")
    bandwidth.add_argument("rate", type=rate, metavar="RATE", help="100mbit, 2.5gbit, 500kbit, none")
    for name, what in ("snapshot", "keep all nodes as they are now"), ("restore", "make all nodes what they were then"):
        verb.add_parser(name, help=f"{what} (VM nodes)").add_argument("name", type=snapshot_name, metavar="NAME")
    verb.add_parser("reset", help="a new disk for one node, or all").add_argument("nodes", nargs="*", metavar="NODE")
    verb.add_parser("next", help="what one can type now")
    verb.add_parser("inventory", help="the lab as Ansible inventory JSON")
    return top


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = parser().parse_args(arguments)
    try:
        paths = Paths(lab_name())
        if parsed.verb not in NEEDS_NO_ROOT:
            host.become_root(arguments)
            os.umask(0o022)  # files that others must read: the state, the nodes' own
        return dispatch(parsed, paths)
    except LabError as problem:
        print(f"lab: {problem}", file=sys.stderr)
        return 1
    except OSError as problem:  # a full disk, a program that is not there: its own words name the file
        print(f"lab: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nlab: interrupted during `{parsed.verb}`; `python3 -m lab up` goes on from here, "
              "`python3 -m lab down` removes everything", file=sys.stderr)  # fmt: skip
        return 130


def words(command: list[str]) -> list[str]:
    """The command after NODE; a leading `--` only separates."""
    return command[1:] if command[:1] == ["--"] else command


def dispatch(parsed: argparse.Namespace, paths: Paths) -> int:
    match parsed.verb:
        case "up":
            options = {name: getattr(parsed, name) for name in ("suite", *states.VM_OPTIONS)}
            wanted = verbs.Wanted(parsed.count, parsed.kind, {name: value for name, value in options.items() if value})
            verbs.up(paths, wanted, host.handed_over(parsed.host_settings))
        case "down":
            verbs.down(paths, purge=parsed.purge)
        case "status":
            verbs.status(paths, as_json=parsed.json)
        case "ssh":
            argv = verbs.ssh_argv(paths, parsed.node, words(parsed.command))
            os.execvp(argv[0], argv)
        case "exec":
            argv = verbs.exec_argv(paths, parsed.node, words(parsed.command) or ["bash"])
            os.execvp(argv[0], argv)
        case "kill":
            verbs.kill(paths, parsed.node, clean=parsed.clean)
        case "start":
            verbs.start(paths, parsed.node)
        case "cable":
            verbs.cable(paths, parsed.node, plugged=parsed.position == "up")
        case "bandwidth":
            verbs.bandwidth(paths, parsed.node, parsed.rate)
        case "reset":
            verbs.reset(paths, parsed.nodes)
        case "snapshot":
            verbs.snapshot(paths, parsed.name)
        case "restore":
            verbs.restore(paths, parsed.name)
        case "next":
            verbs.next_steps(paths)
        case "inventory":
            print(inventory.as_json(paths))
    return 0
