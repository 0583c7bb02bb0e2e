"""nfs_server and nfs_client: who exports, who mounts from where, and what is written."""

import shlex
import subprocess

import pytest
import yaml
from paths import ROOT
from rendering import evaluated, rendered, shared

HOSTS = {"node1": "10.0.0.1", "node2": "10.0.0.2", "node3": "10.0.0.3"}
GROUPS = {"head": ["node1"], "nfs_server": ["node2"]}


def source(host, groups=GROUPS, **variables):
    return shared("nfs_client_source", host, HOSTS, groups, **variables)


def test_the_others_mount_from_the_member_that_exports():
    assert [source(host) for host in HOSTS] == ["10.0.0.2:/srv/minos", "", "10.0.0.2:/srv/minos"]
    assert [shared("nfs_server_enabled", host, HOSTS, GROUPS) for host in HOSTS] == [False, True, False]
    assert shared("nfs_server_clients", "node2", HOSTS, GROUPS) == ["10.0.0.1", "10.0.0.3"]
    assert shared("shared_dir_owner_node", "node3", HOSTS, GROUPS) == "node2"


def test_all_mount_from_a_nas():
    nas = "nas.lan:/volume1/minos"
    groups = {"head": ["node1"]}
    assert [source(host, groups, cluster_nfs_source=nas) for host in HOSTS] == [nas] * 3
    assert shared("shared_dir_owner_node", "node3", HOSTS, groups) == "node1"


@pytest.mark.parametrize("groups", [{"head": ["node1"]}, {"head": ["node1"], "nfs_server": []}], ids=["none", "empty"])
def test_nobody_mounts_where_the_share_is_there_already(groups):
    assert [source(host, groups) for host in HOSTS] == [""] * 3
    assert not any(shared("nfs_server_enabled", host, HOSTS, groups) for host in HOSTS)
    packages = shared("packages_names", "node1", HOSTS, groups)
    assert not [name for name in packages if name.startswith("nfs")]


def test_only_the_server_gets_the_servers_package():
    packages = {host: shared("packages_names", host, HOSTS, GROUPS) for host in HOSTS}
    assert [host for host in HOSTS if "nfs-kernel-server" in packages[host]] == ["node2"]
    assert [host for host in HOSTS if "nfs-common" in packages[host]] == ["node1", "node3"]


def test_the_export_is_to_addresses_only_with_root_squashed():
    text = rendered("nfs_server", "minos.exports.j2", nfs_server_clients=["10.0.0.1", "10.0.0.3"])
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    options = "(rw,sync,root_squash,no_subtree_check,sec=sys)"
    assert lines == [f'"/srv/minos" 10.0.0.1{options} 10.0.0.3{options}']
    alone = rendered("nfs_server", "minos.exports.j2", nfs_server_clients=[])
    assert not [line for line in alone.splitlines() if line and not line.startswith("#")], "no name is everybody"


@pytest.mark.parametrize("path", ["/srv/minos", "/srv/my-share"])
@pytest.mark.parametrize("kind", ["mount", "automount"])
def test_systemd_takes_the_units(kind, path, tmp_path):
    """By the role's own validator; and it does not take a unit that is wrong."""
    unit = subprocess.run(["systemd-escape", "--path", path], capture_output=True, text=True, check=True).stdout
    validator = evaluated(
        "nfs_client", "__nfs_client_validate", __nfs_client_found={"stdout_lines": [unit.strip()]}, item=kind
    )
    text = rendered("nfs_client", f"share.{kind}.j2", nfs_client_path=path, nfs_client_source="10.0.0.2:/srv/minos")

    def accepted(content):
        (file := tmp_path / "candidate").write_text(content)
        return subprocess.run(shlex.split(validator.replace("%s", str(file))), capture_output=True).returncode == 0

    assert accepted(text)
    assert not accepted(text.replace(f"Where={path}", "Where=/elsewhere"))


def test_the_defaults_say_what_the_mount_must_survive():
    options = yaml.safe_load((ROOT / "roles/nfs_client/defaults/main.yml").read_text())["nfs_client_options"].split(",")
    assert {"hard", "_netdev", "nofail", "nosuid", "nodev"} <= set(options)
    assert "soft" not in options
