"""What Ansible is told about the lab."""

import json

import pytest

from lab import inventory, state
from lab.config import LabError, Paths
from lab.hostsettings import HostSettings
from lab.state import LabState


@pytest.fixture
def lab() -> LabState:
    made = LabState(kind="container", subnet="10.1.2.0/24", uplink="10.1.3.0/24", owner=0, ready=True)
    for name in ("node1", "node2", "node3"):
        made.add_node(name)
    return made


@pytest.fixture
def paths(tmp_path, monkeypatch) -> Paths:
    """A lab whose places are below the test's own directory."""
    monkeypatch.setattr(Paths, "lib", property(lambda self: tmp_path / "lib"))
    monkeypatch.setattr(Paths, "run", property(lambda self: tmp_path / "run"))
    (tmp_path / "lib").mkdir()
    return Paths("unit")


def test_groups_and_addresses(lab, paths):
    found = inventory.inventory(paths, lab, HostSettings())
    assert found["head"]["hosts"] == ["node1"]
    assert found["gpu_nodes"]["hosts"] == ["node1", "node2", "node3"]
    assert set(found["cluster"]["children"]) == {"head", "gpu_nodes"}
    hosts = found["_meta"]["hostvars"]
    assert [hosts[name]["ansible_host"] for name in hosts] == ["10.1.2.11", "10.1.2.12", "10.1.2.13"]
    assert all(host["cluster_ip"] == host["ansible_host"] for host in hosts.values())
    assert all("StrictHostKeyChecking=yes" in host["ansible_ssh_common_args"] for host in hosts.values())
    assert "container" not in json.dumps(found)


def test_settings_of_the_host_as_the_nodes_must_write_them(lab):
    settings = HostSettings(
        find_links=["/wheels"],
        index_url="http://127.0.0.1:3141/simple",
        ca_bundle="/home/me/ca.pem",
        proxy_env={"http_proxy": "http://localhost:3128"},
    )
    found = inventory.shared_variables(Paths("lab"), lab, settings)
    assert found["python_env_find_links"] == ["/wheels"]
    assert found["python_env_index_url"] == "http://10.1.3.2:3141/simple"
    assert found["python_env_ca_bundle"] == "/etc/ssl/certs/ca-certificates.crt"
    assert found["cluster_proxy_env"]["http_proxy"] == "http://10.1.3.2:3128"
    assert "10.1.2.0/24" in found["cluster_proxy_env"]["no_proxy"]


def test_a_host_without_settings_adds_none(lab):
    found = inventory.shared_variables(Paths("lab"), lab, HostSettings())
    assert found["cluster_proxy_env"] == {}
    assert "python_env_index_url" not in found
    assert "python_env_ca_bundle" not in found


def test_state_survives_its_file(lab, paths):
    assert state.load(paths) is None
    lab.nodes["node2"].bandwidth = "100mbit"
    state.save(paths, lab)
    assert state.load(paths) == lab


def test_the_networks_of_another_versions_lab_are_known(lab, paths):
    assert state.networks(paths) == []
    paths.state.write_text(json.dumps({"subnet": lab.subnet, "uplink": lab.uplink, "novelty": 1}))
    assert [str(network) for network in state.networks(paths)] == ["10.1.2.0/24", "10.1.3.0/24"]
    paths.state.write_text('{"subnet": "10.1.2.0/24"}')
    with pytest.raises(LabError, match=r"lab\.json: not a lab's state"):
        state.networks(paths)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nodes": {}}', '{"nodes": {"node1": {"adress": "x"}}}'])
def test_a_damaged_state_file_is_named(paths, text):
    paths.state.write_text(text)
    with pytest.raises(LabError, match=r"lab\.json: not a lab's state .*lab-down"):
        state.load(paths)


def test_lab_that_is_not_up_or_half_made(lab, paths):
    with pytest.raises(LabError, match="the lab is not up: run make lab-up"):
        inventory.usable_state(paths)
    paths.run.mkdir()
    lab.ready = False
    state.save(paths, lab)
    with pytest.raises(LabError, match="half made"):
        inventory.usable_state(paths)
