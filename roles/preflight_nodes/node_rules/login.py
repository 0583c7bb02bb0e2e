"""Why Ansible does not get in, or does not become root, in the words of whoever has to mend it."""

from __future__ import annotations

import re

# What ssh says, and what to do; the first that fits.
UNREACHABLE = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key for .* has changed",
        "its host key is not the one known here",
        "if it was reinstalled, ansible-playbook playbooks/trust.yml names the line to mend; else find out who answers",
    ),
    (
        r"Host key verification failed|key is not known",
        "its host key is not known here",
        "ansible-playbook playbooks/trust.yml shows its fingerprint and asks once",
    ),
    (
        r"Permission denied|password|authentication",
        "it does not let {user} in",
        "correct ansible_user, or give it your key: ssh-copy-id {login}",
    ),
    (
        r"Could not resolve hostname",
        "its name {address} is not known here",
        "correct ansible_host, or write an address",
    ),
    (
        r"Connection refused",
        "it is on, but no sshd answers at port {port}",
        "apt install openssh-server there, or correct ansible_port",
    ),
    (
        r"No route to host|Network is unreachable|timed out|Timeout|Operation timed out",
        "it does not answer",
        "switch it on, check cable and address (ansible_host), then try: ssh {login}",
    ),
    (
        r"Connection (closed|reset)|banner exchange",
        "it closes the connection at once",
        "look whether it is up and its sshd lets this machine in, then try: ssh {login}",
    ),
    (r"", "SSH does not get in ({reason})", "try by hand: ssh {login}"),
)
NO_ROOT = (
    (
        r"password is required|Missing sudo password|Timeout .* privilege",
        "sudo wants a password",
        "add -K to the command, or let {user} use sudo without one (NOPASSWD in sudoers)",
    ),
    (
        r"Incorrect sudo password|try again|incorrect password",
        "sudo does not take the password",
        "type it again at -K; if it differs between the nodes, let {user} use sudo without one (NOPASSWD in sudoers)",
    ),
    (
        r"not in the sudoers|not allowed|may not run",
        "{user} may not use sudo",
        "as root there: adduser {user} sudo",
    ),
    (r"not found|No such file", "there is no sudo", "as root there: apt install sudo && adduser {user} sudo"),
    (r"", "sudo fails ({reason})", "try by hand: ssh {login} sudo id"),
)


def explain(table: tuple[tuple[str, str, str], ...], said: str, user: str, address: str, port: int) -> str:
    """Return what is wrong and what to do, from what ssh or sudo said."""
    login = f"{user}@{address}" if user else address
    login += f" -p {port}" if port != 22 else ""
    words = {"user": user or "you", "address": address, "port": port, "login": login, "reason": last_line(said)}
    for pattern, what, fix in table:
        if re.search(pattern, said, re.IGNORECASE):
            return f"{what}: {fix}".format(**words)
    raise AssertionError("the last pattern fits everything")


def last_line(said: str) -> str:
    """Return the line that says why: ssh's own messages end with it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("ssh: ") if lines else "without a word"


def reached(said: str) -> bool:
    """Whether ssh got in, as far as what was said tells: asking a node that is off again takes another ten seconds."""
    return not re.search(r"(via|over) ssh: ", said)
