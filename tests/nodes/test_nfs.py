"""nfs_server and nfs_client: one member exports to the others and to nobody else; they mount it on demand, for good."""

import json

import pytest


@pytest.fixture
def server(told, name):
    if name != told.nfs_server:
        pytest.skip("this node exports nothing")


@pytest.fixture
def unit(host, told):
    if not told.nfs_source:
        pytest.skip("this node mounts nothing by NFS: it exports, or the share was there before")
    return host.check_output("systemd-escape --path %s", told.shared_path)


def test_nfs_is_exported_to_the_members_only(host, told, name, server):
    exports = [line.split() for line in host.check_output("exportfs -s").splitlines()]
    ours = {client.partition("(")[0]: client for path, client in exports if path == told.shared_path}
    assert set(ours) == {address for peer, address in told.members.items() if peer != name}
    for client in ours.values():
        options = set(client.partition("(")[2].rstrip(")").split(","))
        assert {"rw", "sync", "root_squash"} <= options and "no_root_squash" not in options


def test_nfs_the_server_comes_back_and_speaks_version_4(host, server):
    assert host.service("nfs-server").is_enabled and host.service("nfs-server").is_running
    versions = host.file("/proc/fs/nfsd/versions").content_string.split()
    assert "+4.2" in versions
    if host.run("grep -sqE '^[[:space:]]*[^#[:space:]]' /etc/exports").rc != 0:
        assert "-3" in versions, "nobody here needs version 3"


def test_nfs_the_server_uses_its_own_directory(host, told, server):
    found = json.loads(host.check_output("findmnt --json --target %s", told.shared_path))["filesystems"]
    assert not found[0]["fstype"].startswith("nfs")


def test_nfs_is_mounted_on_demand_and_survives_its_server(host, told, unit):
    assert host.service(f"{unit}.automount").is_enabled and host.service(f"{unit}.automount").is_running
    host.run("runuser -u %s -- ls %s", told.user, told.shared_path)
    found = json.loads(host.check_output("findmnt --json --mountpoint %s", told.shared_path))["filesystems"][-1]
    assert (found["fstype"], found["source"]) == ("nfs4", told.nfs_source)
    assert {"hard", "nosuid", "nodev"} <= set(found["options"].split(","))


def test_nfs_a_boot_and_logins_do_not_wait_for_it(host, unit):
    shown = host.check_output("systemctl show --property=Before,WantedBy,RequiredBy %s.mount", unit)
    assert "remote-fs.target" not in shown
    assert "remote-fs.target" in host.check_output("systemctl show --property=WantedBy %s.automount", unit)


def test_nfs_root_of_a_client_is_nobody_there(host, told, unit):
    path = f"{told.shared_path}/jobs/.check-root"
    refused = host.run("touch %s", path)
    host.run("runuser -u %s -- rm -f %s", told.user, path)
    assert refused.rc != 0 and "Permission denied" in refused.stderr
