"""Ask hosts for their host keys, the way that Ansible's connection takes, and sort them: known, new, other than known.

ssh itself is asked, not ssh-keyscan: it goes through the proxies, ports and configuration that the inventory names, and
its own verdict is the one that counts later. Changes nothing; `new`, `other` and `silent` are lists of what was found.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

OPTIONS = ("ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args")
OFFENDING = re.compile(r"^Offending \S+ key in (.+):(\d+)", re.MULTILINE)


def ssh(variables: Mapping[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    """Run ssh to the host with `options` before those of the inventory: the first one counts."""
    words = [word for name in OPTIONS for word in shlex.split(str(variables.get(name) or ""))]
    if port := variables.get("ansible_port"):
        words += ["-p", str(port)]
    if user := variables.get("ansible_user"):
        words += ["-l", str(user)]
    if key := variables.get("ansible_ssh_private_key_file"):
        words += ["-i", str(key)]
    command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ControlPath=none", *options, *words]
    command += [str(variables.get("ansible_host") or variables["inventory_hostname"]), "true"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def shown(variables: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the key that the host shows, and the name that ssh files it under."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "known_hosts"
        nothing_known = f"-oUserKnownHostsFile={file}", "-oGlobalKnownHostsFile=/dev/null"
        ssh(variables, *nothing_known, "-oStrictHostKeyChecking=accept-new", "-oHashKnownHosts=no")
        if not file.exists() or not (lines := file.read_text().splitlines()):
            return None
        listed = subprocess.run(["ssh-keygen", "-l", "-f", file], capture_output=True, text=True, check=True).stdout
    _, fingerprint, *_, kind = listed.splitlines()[0].split()
    return {"name": lines[0].split()[0], "key": lines[0], "fingerprint": f"{kind.strip('()')} {fingerprint}"}


def known_hosts_file(variables: Mapping[str, Any]) -> str:
    """Return the file in which ssh would keep the host's key."""
    settings = ssh(variables, "-G").stdout
    files = re.search(r"^userknownhostsfile (\S+)", settings, re.MULTILINE)
    return str(Path(files[1]).expanduser())


def meet(host: str, variables: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return one of known, new, other, silent, and what is to be said about it."""
    if variables.get("ansible_connection") == "local":
        return "known", {"host": host}
    tried = ssh(variables, "-oStrictHostKeyChecking=yes")
    if "Host key verification failed" not in tried.stderr:
        # Refused for want of a key or a password, a host has shown its own before.
        if tried.returncode == 0 or "Permission denied" in tried.stderr:
            return "known", {"host": host}
        if variables.get("first_contact"):  # it does not have its own address yet
            return meet(host, {**variables, "ansible_host": variables["first_contact"], "first_contact": ""})
        return "silent", {"host": host, "said": (tried.stderr.strip().splitlines() or ["no message"])[-1]}
    key = shown(variables)
    if key is None:
        return "silent", {"host": host, "said": tried.stderr.strip().splitlines()[-1]}
    if offending := OFFENDING.search(tried.stderr):
        return "other", {"host": host, "file": offending[1], "line": int(offending[2]), **key}
    return "new", {"host": host, "file": known_hosts_file(variables), **key}


class ActionModule(ActionBase):
    """`hosts`: names in the inventory."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        hostvars = (task_vars or {})["hostvars"]
        wanted = ("inventory_hostname", "ansible_host", "ansible_port", "ansible_user", "ansible_ssh_private_key_file")
        wanted = (*wanted, "first_contact", "ansible_connection", *OPTIONS)
        hosts = {
            host: {name: hostvars[host][name] for name in wanted if name in hostvars[host]}
            for host in self._task.args["hosts"]
        }
        result.update(changed=False, known=[], new=[], other=[], silent=[])
        with ThreadPoolExecutor(max_workers=16) as pool:
            for verdict, found in pool.map(lambda item: meet(*item), hosts.items()):
                result[verdict].append(found)
        return result
