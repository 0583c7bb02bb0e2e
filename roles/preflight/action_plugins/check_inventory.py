"""Say everything that is wrong with the inventory at once, before any node is contacted.

The rules read the inventory only: nothing here depends on facts or on the state of a node.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

NOT_READY = (
    "the inventory is still the one that ships: put your machines' names and addresses into {source}, "
    "then set minos_inventory_ready: true there"
)
NO_SHARED_VARS = (
    "the shared variables were not loaded for {source}: keep your inventory file in inventory/, "
    "or link inventory/group_vars beside it (ln -s ../group_vars)"
)

OTHER_CONFIG = (
    "this project's ansible.cfg is not in force, and without it the inventory's settings would be overruled: "
    "run from the project's own folder, not writable by others, with ANSIBLE_CONFIG unset"
)


def address_findings(name: str, address: Any, network: Any, seen: dict[str, str]) -> Iterator[str]:
    """Check one member's cluster_ip: IPv4, its own, inside the cluster's subnet."""
    try:
        parsed = ipaddress.IPv4Address(str(address))
    except ValueError:
        yield f"{name}: cluster_ip (or ansible_host) is '{address}': write an IPv4 address such as 192.168.1.100"
        return
    if (other := seen.setdefault(str(parsed), name)) != name:
        yield f"{name}: address {parsed} is already that of {other}: every node needs one of its own"
    if network is not None and parsed not in network:
        yield (
            f"{name}: address {parsed} is outside {network} (from cluster_gateway and cluster_prefix): "
            "correct the address, the gateway or the prefix"
        )


def subnet(gateway: Any, prefix: Any) -> tuple[ipaddress.IPv4Network | None, list[str]]:
    """Return the cluster's subnet, or None where no gateway tells it, with what is wrong about either."""
    if not str(prefix).isdigit() or not 8 <= int(prefix) <= 30:
        return None, [f"cluster_prefix is '{prefix}': write the length of the netmask, 8 to 30 (usually 24)"]
    if gateway in ("", None):
        return None, []
    try:
        return ipaddress.IPv4Interface(f"{gateway}/{prefix}").network, []
    except ValueError:
        return None, [f"cluster_gateway is '{gateway}': write the router's IPv4 address, or '' for none"]


def member_findings(members: list[str], variables: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Check the addresses of all members against each other and against the subnet."""
    first = variables[members[0]]
    network, wrong = subnet(first.get("cluster_gateway"), first.get("cluster_prefix"))
    yield from wrong
    seen: dict[str, str] = {}
    for name in members:
        try:
            address = variables[name]["cluster_ip"]
        except (KeyError, AnsibleError):
            yield f"{name}: has no address: give it ansible_host (and cluster_ip where that differs)"
            continue
        yield from address_findings(name, address, network, seen)


def shared_findings(values: Mapping[str, Any]) -> Iterator[str]:
    """Check the values that are the same for the whole cluster."""
    path = Path(str(values["cluster_shared_path"]))
    if not path.is_absolute() or path == Path("/"):
        yield f"cluster_shared_path is '{path}': write an absolute path other than /, such as /srv/minos"
    port = str(values["rendezvous_port"])
    if not port.isdigit() or not 1024 <= int(port) <= 65535:
        yield f"rendezvous_port is '{port}': write a port number from 1024 to 65535"


def group_findings(groups: Mapping[str, list[str]]) -> Iterator[str]:
    """Check that the groups that the plays name exist and hold what they should."""
    if len(groups.get("head", [])) != 1:
        yield f"group head has {len(groups.get('head', []))} hosts: name exactly one machine there"
    if not groups.get("gpu_nodes"):
        yield "group gpu_nodes is missing or empty: name the machines that train there"
    for name in [*groups.get("head", []), *groups.get("gpu_nodes", [])]:
        if name not in groups.get("cluster", []):
            yield f"{name} is not in group cluster: make head and gpu_nodes its children"


def findings(groups: Mapping[str, list[str]], variables: Mapping[str, Mapping[str, Any]], source: str) -> list[str]:
    """List what is wrong, a line each; `variables` maps host names to their variables."""
    if not groups.get("cluster"):
        return [f"{source} has no hosts in group cluster: start from inventory/hosts.yml, which shows its shape"]
    shared = variables[groups["cluster"][0]]
    if "minos_shared_vars" not in shared:
        return [NO_SHARED_VARS.format(source=source)]
    if shared.get("minos_inventory_ready") is not True:
        return [NOT_READY.format(source=source)]
    if wrong := list(group_findings(groups)):
        return wrong
    return [*member_findings(groups["cluster"], variables), *shared_findings(shared)]


class ActionModule(ActionBase):
    """Fail with all findings; `partial_ok: true` accepts --limit."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        sources = ", ".join(map(str, task_vars.get("ansible_inventory_sources") or [])) or "the inventory"
        if constants.config.get_config_value("VARIABLE_PRECEDENCE")[0] != "all_plugins_inventory":
            wrong = [OTHER_CONFIG]
        else:
            wrong = findings(task_vars["groups"], task_vars["hostvars"], sources)
        if task_vars.get("ansible_limit") and not self._task.args.get("partial_ok"):
            wrong.append(
                f"--limit {task_vars['ansible_limit']} would leave the other members out of step "
                "(hosts, keys, firewall): run without it"
            )
        result.update(changed=False, failed=bool(wrong), msg="\n".join(wrong) or "the inventory is fine")
        return result
