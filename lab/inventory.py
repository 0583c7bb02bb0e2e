"""The lab as an Ansible inventory. Nothing in it says "container": to the playbooks these are machines."""

import json
import os
import sys

from lab import hostsettings, network
from lab.config import NODE_USER, LabError, Paths
from lab.hostsettings import HostSettings
from lab.kinds import kind
from lab.state import LabState, load

NODE_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def ssh_options(paths: Paths, state: LabState) -> list[str]:
    """OpenSSH options that lead to a node; host keys are checked against the file the lab wrote."""
    return [
        "-o", f"ProxyCommand={kind(state.kind, paths).proxy_command()}",
        "-o", f"UserKnownHostsFile={paths.known_hosts}",
        "-o", "GlobalKnownHostsFile=/dev/null",
        "-o", "StrictHostKeyChecking=yes",
        "-o", "IdentitiesOnly=yes",
    ]  # fmt: skip


def usable_state(paths: Paths) -> LabState:
    """The state of a lab that is up and belongs to the caller. Raises LabError else."""
    state = load(paths)
    if state is None or not paths.run.exists():
        raise LabError("the lab is not up: run make lab-up")
    if not state.ready:
        raise LabError("the lab is half made (an earlier `up` did not finish): run make lab-up again")
    if not os.access(paths.ssh_key, os.R_OK):
        raise LabError(
            f"the lab belongs to the user with uid {state.owner}; use another one: MINOS_LAB=NAME make lab-up"
        )
    return state


def inventory(paths: Paths, state: LabState, settings: HostSettings) -> dict:
    """Ansible's inventory JSON: group `head` is the first node, which is a GPU node too."""
    options = " ".join(f"'{word}'" if " " in word else word for word in ssh_options(paths, state))
    hosts = {
        name: {
            "ansible_host": node.address,
            "cluster_ip": node.address,
            "ansible_user": NODE_USER,
            "ansible_ssh_private_key_file": str(paths.ssh_key),
            "ansible_ssh_common_args": options,
            "ansible_python_interpreter": "/usr/bin/python3",
            "lan_interface": kind(state.kind, paths).nic,
        }
        for name, node in state.nodes.items()
    }
    names = list(state.nodes)
    groups = {"head": {"hosts": names[:1]}, "gpu_nodes": {"hosts": names}}
    if not kind(state.kind, paths).shared:
        groups["nfs_server"] = {"hosts": [state.server or names[0]]}
    return {
        "_meta": {"hostvars": hosts},
        "all": {"children": ["cluster"], "vars": shared_variables(paths, state, settings)},
        "cluster": {"children": list(groups)},
        **groups,
    }


def shared_variables(paths: Paths, state: LabState, settings: HostSettings) -> dict:
    """What is true for every node, with the host's package settings as the nodes must write them."""
    host = network.host_of_uplink(state)
    nodes = kind(state.kind, paths)

    def seen(urls: list[str]) -> list[str]:
        return [as_seen(url) for url in urls]

    def as_seen(url: str) -> str:
        local = hostsettings.local_path(url)
        if local is None:
            return hostsettings.for_nodes(url, host)
        there = nodes.package_url(state, str(local))
        return url if there == str(local) else there

    proxy_env = {name: hostsettings.for_nodes(value, host) for name, value in settings.proxy_env.items()}
    if proxy_env:
        proxy_env["no_proxy"] = ",".join(filter(None, [proxy_env.get("no_proxy"), "localhost,127.0.0.1", state.subnet]))
    variables = {
        "minos_inventory_ready": True,
        "cluster_gateway": state.gateway,
        "cluster_prefix": state.network.prefixlen,
        "cluster_nameservers": [state.gateway],
        "omp_num_threads": 1,
        "python_env_kind": "venv",  # conda's installer and channel may be out of reach
        "python_env_variant": "cpu",
        "python_env_find_links": seen(settings.find_links),
        "python_env_extra_index_urls": seen(settings.extra_index_urls),
        "cluster_proxy_env": proxy_env,
        # The checks of the nodes ask from here what somebody on the LAN who is no member can reach.
        "outsider_command": ["env", f"MINOS_LAB={paths.lab}", sys.executable, "-m", "lab", "exec", "lan"],
    }
    if settings.index_url:
        variables["python_env_index_url"] = seen([settings.index_url])[0]
    if settings.ca_bundle:
        variables["python_env_ca_bundle"] = NODE_BUNDLE
    return variables


def as_json(paths: Paths) -> str:
    state = usable_state(paths)
    settings = HostSettings.from_json(paths.settings.read_text())
    return json.dumps(inventory(paths, state, settings), indent=2)
