"""One environment everywhere, downloaded once: counted, broken off, and made by conda's way, in a lab of its own.

The tests of this file build on each other and run in their order.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.labs import ROOT, Lab, changed

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

LAB = Lab("environ")
NODES = ["node1", "node2"]
ENV = "/opt/minos/envs/dist-train"
PACKAGES = f"{ENV}/lib/python3.11/site-packages"
RECORDED = Path(__file__).with_name("recorded_miniforge.sh")
# An index that refuses: who asks anything but the share fails.
CUT_OFF = {
    "python_env_index_url": "http://127.0.0.1:9/",
    "python_env_extra_index_urls": [],
    "python_env_find_links": [],
    "cluster_proxy_env": {},
}
# Every file of every package is there, as it was packed.
WHOLE = """
import base64, hashlib, importlib.metadata
bad = [str(file) for package in importlib.metadata.distributions() for file in package.files or ()
       if file.hash and file.hash.mode == "sha256" and not (file.locate().exists() and file.hash.value ==
       base64.urlsafe_b64encode(hashlib.sha256(file.locate().read_bytes()).digest()).rstrip(b"=").decode())]
print(bad[:5])
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, dict]]:
    """Two nodes with what the environment stands on."""
    LAB.command("down")
    LAB.command("up", "-n", "2")
    try:
        LAB.playbook("site.yml", "--tags", "packages,service_user,shared_dir")
        yield LAB.nodes()
    finally:
        LAB.command("down")


def with_hosts(folder: Path, hosts: dict[str, dict]) -> list[str | Path]:
    """The lab's inventory, and variables of some hosts laid over it."""
    file = folder / "hosts.yml"
    file.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    return ["inventory/lab", file]


def received(node: str) -> int:
    """Bytes that have come in by the network, Ansible's own among them: the share is a directory of the host."""
    return int(LAB.inside(node, "cat $(ls -d /sys/class/net/* | grep -v /lo$)/statistics/rx_bytes"))


def test_only_the_head_downloads(nodes, tmp_path):
    before = {name: received(name) for name in NODES}
    cut_off = with_hosts(tmp_path, dict.fromkeys(NODES[1:], CUT_OFF))
    LAB.playbook("site.yml", "--tags", "python_env", inventory=cut_off)
    fetched = {name: received(name) - before[name] for name in NODES}
    print(f"bytes from outside: {fetched}")
    assert fetched["node1"] > 30e6
    assert fetched["node2"] < 5e6, "no more than Ansible itself sends"
    assert LAB.inside("node1", "ls -A /srv/minos/packages").split()[0].startswith("complete-")
    assert LAB.inside("node2", f"{ENV}/bin/python -c 'import torch; print(torch.__version__)'").startswith("2.")
    assert LAB.inside("node2", "ls -A /opt/minos").split() == ["envs", "requirements.txt", "uv", "uv.txt"]


def test_they_are_the_same_and_stay_so(nodes):
    done = LAB.playbook("playbooks/parity.yml")
    assert "node1, node2: the same Python 3.11" in done.stdout
    assert set(changed(LAB.playbook("site.yml", "--tags", "python_env")).values()) == {0}


def test_a_package_that_is_gone_is_named_and_mended(nodes):
    LAB.inside("node2", f"/opt/minos/uv/bin/uv pip uninstall --quiet --python {ENV}/bin/python tqdm")
    done = LAB.playbook("playbooks/parity.yml", check=False)
    assert done.returncode != 0
    assert "node2 does not run the same as node1: package tqdm" in done.stdout + done.stderr
    assert changed(LAB.playbook("site.yml", "--tags", "python_env"))["node2"] == 1
    assert LAB.playbook("playbooks/parity.yml").returncode == 0


def test_an_installation_that_broke_off_is_made_whole(nodes, tmp_path):
    """The installer dies by kill -9 with a part of the packages there."""
    LAB.inside("node2", f"rm -rf {PACKAGES}/*")
    command = ["ansible-playbook", "-i", "inventory/lab", "site.yml", "--tags", "python_env"]
    environment = os.environ | {"MINOS_LAB": LAB.name}
    # Waited for and killed on the node itself: from here the right moment would be over.
    kill = f"""for i in $(seq 9000); do
        if [ -e {PACKAGES}/torch ] && pid=$(pgrep -x uv); then kill -9 $pid; exit; fi; sleep 0.02
    done; exit 1"""
    # Not this process's own stdin and stderr: Ansible refuses to run with one that does not block.
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as running:
        LAB.inside("node2", kill)
        said = running.communicate(timeout=200)[0]
    assert running.returncode != 0
    assert "node2" in said.partition("fatal: ")[2]
    whole = f"{ENV}/bin/python -I -c '{WHOLE}'"
    assert LAB.inside("node2", whole) != "[]", "it was in the middle"
    # Worse than what uv leaves: a package that says it is there, and lacks a file.
    LAB.inside("node2", f"rm -f $(ls {PACKAGES}/*/__init__.py | head -1)")
    LAB.playbook("site.yml", "--tags", "python_env")
    assert LAB.inside("node2", whole) == "[]"
    assert LAB.playbook("playbooks/parity.yml").returncode == 0


BY_CONDA = "/opt/minos/envs/by-conda"


def by_conda(*names: str) -> dict[str, dict]:
    """What these nodes are told for conda's way; nobody but the head reaches an index."""
    both = {"python_env_kind": "conda", "cluster_env_path": BY_CONDA}
    both["python_env_miniforge_url"] = "file:///var/tmp/miniforge.sh"
    both["python_env_miniforge_sha256"] = LAB.inside("node1", "sha256sum /var/tmp/miniforge.sh").split()[0]
    return {name: both | (CUT_OFF if name != "node1" else {}) for name in names}


def test_the_way_by_conda(nodes, tmp_path):
    """All of it but conda itself, see recorded_miniforge.sh."""
    LAB.inside("node1", f"cat > /var/tmp/miniforge.sh <<'END'\n{RECORDED.read_text()}END\n")
    hosts = by_conda(*NODES)
    inventory = with_hosts(tmp_path, hosts)
    LAB.playbook("site.yml", "--tags", "python_env", inventory=inventory)
    asked = {name: LAB.inside(name, "cat /opt/minos/conda/bin/asked") for name in NODES}
    made = f"create --yes --quiet --prefix {BY_CONDA}"
    assert asked["node1"] == f"{made} --override-channels --channel conda-forge python=3.11"
    assert asked["node2"] == f"{made} --offline ./python-3.11.conda"
    login = "runuser -u minos -- bash -ic 'python -c \"import sys, torch; print(sys.prefix)\"' 2>/dev/null"
    assert LAB.inside("node2", login) == BY_CONDA
    again = LAB.playbook("site.yml", "--tags", "python_env", inventory=inventory)
    assert set(changed(again).values()) == {0}
    other = hosts["node1"] | {"python_env_miniforge_sha256": hashlib.sha256(b"").hexdigest()}
    wrong = with_hosts(tmp_path, dict.fromkeys(NODES, other))
    refused = LAB.playbook("site.yml", "--tags", "python_env", inventory=wrong, check=False)
    assert refused.returncode != 0
    assert "checksum" in refused.stdout


def test_a_third_node_takes_all_of_it_from_the_share(nodes, tmp_path):
    """It joins later, with no index that would answer it; and nothing changes on the others."""
    LAB.command("up", "-n", "3")
    everyone = [*NODES, "node3"]
    inventory = with_hosts(tmp_path, by_conda(*everyone))
    planned = LAB.playbook("site.yml", "--check", "--tags", "python_env", inventory=inventory)
    assert changed(planned)["node3"] > 0, "check mode works on a virgin node"
    LAB.playbook("site.yml", "--tags", "packages,service_user,shared_dir", inventory=inventory)
    before = received("node3")
    done = LAB.playbook("site.yml", "--tags", "python_env", inventory=inventory)
    came = received("node3") - before
    print(f"bytes that came to node3: {came}")
    assert came < 5e6, "no more than Ansible itself sends"
    assert changed(done)["node3"] > 3 and {changed(done)[name] for name in NODES} == {0}
    same = LAB.playbook("playbooks/parity.yml", inventory=inventory)
    assert "node1, node2, node3: the same Python 3.11" in same.stdout
