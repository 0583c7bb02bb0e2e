"""The machine and its operating system: what the packages, the lock and the units are made for."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from .answer import Answer, Asked, Finding, error, warning

# What ansible-core 2.19 needs on the machines that it manages.
PYTHON = (3, 8)


def check(answer: Answer, asked: Asked) -> Iterator[Finding]:
    yield from release(answer, asked)
    yield from machine(answer)
    yield from python(answer, asked)
    yield from memory(answer, asked)
    yield from sudo(answer)
    yield from ssh(answer, asked)


def release(answer: Answer, asked: Asked) -> Iterator[Finding]:
    said = dict(
        word.split("=", 1)
        for line in answer.lines("system")
        for word in shlex.split(line, comments=True)
        if "=" in word
    )
    name, version = said.get("ID", "none"), said.get("VERSION_ID", "")
    if version in asked.systems.get(name, []):
        return
    known = ", ".join(f"{known.capitalize()} {' or '.join(releases)}" for known, releases in asked.systems.items())
    yield error(
        f"its system is {said.get('PRETTY_NAME', 'unknown')}, and this is made for {known}: install one of these, or "
        f"add '{name}: [\"{version}\"]' to preflight_nodes_systems in the inventory to try it all the same"
    )


def machine(answer: Answer) -> Iterator[Finding]:
    kind, first = [*answer.lines("machine"), "", ""][:2]
    if kind != "x86_64":
        yield error(f"its processor is {kind or 'unknown'}, and the Python environment is made for x86_64: take it out")
    if first != "systemd":
        yield error(
            f"process 1 is {first or 'unknown'}, not systemd, which keeps jobs and the store running: boot it "
            "with systemd (a container needs an image with systemd as its command)"
        )


def python(answer: Answer, asked: Asked) -> Iterator[Finding]:
    found = answer.sections.get("python", "")
    needed = ".".join(map(str, PYTHON))
    if not found:
        yield error(f"there is no Python at {asked.python}: apt install python3 there")
    elif tuple(map(int, found.split("."))) < PYTHON:
        yield error(
            f"{asked.python} is Python {found}, and Ansible needs {needed} or newer: set ansible_python_interpreter to "
            "a newer one"
        )


def memory(answer: Answer, asked: Asked) -> Iterator[Finding]:
    kilobytes = int((answer.sections.get("memory") or "0").split()[0])
    # The kernel keeps some for itself: 2 GB in the shop are 1.9 here.
    if 0 < kilobytes < asked.memory * 0.9e6:
        yield warning(
            f"it has {kilobytes / 1e6:.1f} GB of memory; a training process alone takes 1 GB besides the model: "
            "only small models will run there"
        )


def sudo(answer: Answer) -> Iterator[Finding]:
    """Where root logs in nothing needs it, until something is to be done as the service user."""
    if not answer.sections.get("sudo"):
        yield error("there is no sudo, by which Ansible becomes the service user: apt install sudo there")


def ssh(answer: Answer, asked: Asked) -> Iterator[Finding]:
    """The machine that one types on needs no sshd to be a node; the others need one there to reach it."""
    if asked.ssh and "key" not in answer.identity:
        yield error(
            "there is no /etc/ssh/ssh_host_ed25519_key.pub, by which the others shall know it: apt install "
            "openssh-server there, or ssh-keygen -A where it is installed"
        )
