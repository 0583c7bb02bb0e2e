"""A driver from NVIDIA's repository, and nodes that need none, in a lab of its own.

NVIDIA's own repository cannot be counted on where these tests run: in its place stands one in its form on the lab's
LAN, with empty packages of its names and a key made for it. apt, gpg and the signatures are real; what is in the
packages is not. There is no card either: the role is shown the PCI bus of one.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
LAB = "driverrepo"
ENVIRONMENT = {**os.environ, "MINOS_LAB": LAB, "ANSIBLE_NOCOLOR": "1"}
PACKAGES = ("nvidia-driver-pinning-580", "nvidia-kernel-open-dkms", "nvidia-driver-cuda", "nvidia-persistenced")
ASKED_FOR = ("cuda-toolkit-13-0", "nvidia-container-toolkit")
OLD, NEW = "580.95.05-1", "580.105.08-1"
CARDS = {"node1": "0x2c05", "node2": "0x2684"}


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert not check or done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done


def lab(*arguments: str) -> str:
    return run(sys.executable, "-m", "lab", *arguments).stdout


def on(node: str, command: str, check: bool = True) -> str:
    """Run a shell command as root inside a node, without SSH."""
    return run(sys.executable, "-m", "lab", "exec", node, "sh", "-c", command, check=check).stdout.strip()


def package(folder: Path, name: str, version: str) -> str:
    """Build an empty package; return its paragraph of the index."""
    root = folder / f"{name}-{version}" / "DEBIAN"
    root.mkdir(parents=True)
    (root / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody <nobody@example.org>\n"
        "Description: an empty package with a name of NVIDIA's\n"
    )
    deb = folder / f"{name}_{version}.deb"
    run("dpkg-deb", "--build", "--root-owner-group", str(root.parent), str(deb))
    content = deb.read_bytes()
    paragraph = (root / "control").read_text()
    return f"{paragraph}Filename: ./{deb.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"


def gpg(home: Path, *arguments: str) -> str:
    return run("gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode=loopback", *arguments).stdout


def publish(folder: Path, home: Path, packages: list[tuple[str, str]]) -> None:
    """A signed repository of these (name, version) in NVIDIA's form."""
    place = folder / "debian12/x86_64"
    place.mkdir(parents=True)
    index = "\n".join(package(place, *each) for each in packages)
    (place / "Packages").write_text(index)
    digest = hashlib.sha256(index.encode()).hexdigest()
    release = folder / "Release"
    release.write_text(f"Origin: NVIDIA\nSHA256:\n {digest} {len(index)} Packages\n")
    gpg(home, "--clearsign", "--output", str(place / "InRelease"), str(release))
    (place / "3bf863cc.pub").write_text(gpg(home, "--armor", "--export"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The lab with the repository on node3; returns address and fingerprint."""
    folder, home = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("gpg")
    (home).chmod(0o700)
    gpg(home, "--passphrase=", "--quick-generate-key", "repository@example.org", "ed25519", "sign", "never")
    publish(folder / "old", home, [(name, OLD) for name in (*PACKAGES, *ASKED_FOR)])
    publish(folder / "new", home, [(name, v) for v in (OLD, NEW) for name in (*PACKAGES, *ASKED_FOR)])
    fingerprint = re.search(r"^fpr:*([0-9A-F]+):", gpg(home, "--list-keys", "--with-colons"), re.MULTILINE)[1]
    run("gpgconf", "--homedir", str(home), "--kill", "all")  # the agent, which would outlive the tests
    lab("down")
    lab("up", "-n", "3")
    share = Path(f"/var/lib/minos-lab/{LAB}/share/nvidia.tar")
    with tarfile.open(folder / "repository.tar", "w") as archive:
        archive.add(folder / "old/debian12", "debian12")
        archive.add(folder / "new/debian12", "newer")
    run(*([] if os.geteuid() == 0 else ["sudo"]), "cp", str(folder / "repository.tar"), str(share))
    on("node3", "mkdir /var/tmp/web && tar -C /var/tmp/web -xf /srv/minos/nvidia.tar")
    on("node3", "systemd-run --working-directory=/var/tmp/web python3 -m http.server 8000")
    for node, card in CARDS.items():
        path = "/var/tmp/pci/0000:01:00.0"
        on(node, f"mkdir -p {path}; cd {path}; echo 0x10de >vendor; echo {card} >device; echo 0x030000 >class")
    address = on("node3", "hostname -I").split()[0]
    yield f"http://{address}:8000", fingerprint
    lab("down")


def site(url: str, fingerprint: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run what is about drivers. `nvidia_load: false`: these nodes are containers, whose kernel is not theirs."""
    options = {
        "nvidia_pci_path": "/var/tmp/pci",
        "nvidia_load": "false",
        "nvidia_variant": "cuda",
        "nvidia_repository_url": url,
        "nvidia_repository_fingerprint": fingerprint,
    }
    words = [word for name, value in options.items() for word in ("-e", f"{name}={value}")]
    command = ["ansible-playbook", "-i", "inventory/lab", "site.yml", "--tags", "packages,nvidia", *words, *arguments]
    return run(*command, check=check)


def changes(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    recap = done.stdout.partition("PLAY RECAP")[2]
    return {host: int(count) for host, count in re.findall(r"^(\S+) .*changed=(\d+)", recap, re.MULTILINE)}


INSTALLED = "dpkg-query --show --showformat='${db:Status-Abbrev}${Package} ${Version}\\n' | grep -i nvidia; true"


def test_a_key_that_is_not_the_one_is_not_trusted(repository):
    url, fingerprint = repository
    done = site(url, "EB693B3035CD5710E231E123A4B469963BF863CC", check=False)
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert done.returncode != 0
    assert f"its fingerprint is {fingerprint}, and EB693B3035CD5710E231E123A4B469963BF863CC was expected" in said, said[
        -2000:
    ]
    for node in CARDS:
        assert on(node, INSTALLED) == ""
        assert on(node, "ls /etc/apt/keyrings /etc/apt/sources.list.d | grep cuda; true") == ""


def test_the_driver_comes_from_there_and_the_run_says_why(repository):
    before = on("node3", "dpkg-query --show")
    done = site(*repository)
    assert "from NVIDIA's repository: debian 12's own driver is 535, and it needs driver 580 or newer" in done.stdout
    assert "No NVIDIA GPU in node3: training runs on the CPU there" in done.stdout
    for node in CARDS:
        installed = on(node, INSTALLED).splitlines()
        assert installed == [f"hi {name} 580.95.05-1" for name in sorted(PACKAGES)], "held, all of them"
    after = on("node3", "dpkg-query --show").splitlines()
    assert {line.split("\t")[0] for line in set(after) - set(before.splitlines())} & {"gpg", *PACKAGES} == set()
    assert (
        on("node3", "ls -d /etc/modprobe.d/minos* /etc/minos/cards.env /var/lib/minos-nvidia 2>/dev/null; true") == ""
    )


def test_a_second_run_changes_nothing(repository):
    assert changes(site(*repository)) == dict.fromkeys(["localhost", "node1", "node2", "node3"], 0)
    assert changes(site(*repository, "--check", "--diff")) == dict.fromkeys(["localhost", "node1", "node2", "node3"], 0)


def versions(node: str) -> dict[str, str]:
    """Packages of the repository there, each with its state and version."""
    return {line.split()[1]: f"{line.split()[0]} {line.split()[2]}" for line in on(node, INSTALLED).splitlines()}


def test_a_newer_driver_comes_when_it_is_asked_for(repository):
    on("node3", "cd /var/tmp/web && mv debian12 older && mv newer debian12")
    none = dict.fromkeys(["localhost", "node1", "node2", "node3"], 0)
    on("node1", "apt-get -qq update")
    assert changes(site(*repository)) == none, "held, and not asked for"
    assert set(versions("node1").values()) == {f"hi {OLD}"}
    site(*repository, "-e", "nvidia_upgrade=true")
    for node in CARDS:
        assert versions(node) == dict.fromkeys(PACKAGES, f"hi {NEW}"), "newer, and held again"
    assert changes(site(*repository)) == none


def test_what_is_held_is_let_go(repository):
    on("node2", "apt-mark hold nano")
    done = site(*repository, "-e", "nvidia_hold=false")
    assert changes(done)["node1"] == changes(done)["node2"] == 1
    assert (on("node1", "apt-mark showhold"), on("node2", "apt-mark showhold")) == ("", "nano")
    assert set(changes(site(*repository, "-e", "nvidia_hold=false")).values()) == {0}
    on("node2", "apt-mark unhold nano")
    site(*repository)
    assert set(PACKAGES) <= set(on("node2", "apt-mark showhold").split())


CHECK = """
- hosts: node1:node2
  become: true
  vars:
    __nvidia_choice: {cards: [one]}
  tasks:
    - name: Check the driver
      ansible.builtin.include_role: {name: nvidia, tasks_from: check}
"""


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (("580.95.05", "580.95.05"), ""),
        (
            ("580.95.05", "580.105.08"),
            "The nodes' drivers differ: node1 580.95.05, node2 580.105.08. Bring them to one",
        ),
        (
            ("580.95.05", ""),
            "node2 has 1 NVIDIA GPU(s), but nvidia-smi answers: Failed to initialize NVML: Driver/library",
        ),
    ],
    ids=["equal", "differ", "mismatch"],
)
def test_drivers_are_asked_and_compared(repository, tmp_path, said, message):
    """nvidia-smi is a stand-in that answers as the real one does."""
    for node, version in zip(CARDS, said, strict=True):
        answer = f"echo 'NVIDIA GeForce RTX 4090, {version}'"
        broken = "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18"
        text = f"#!/bin/sh\n{answer if version else broken}\n"
        on(node, f"cat >/usr/local/bin/nvidia-smi <<'END'\n{text}END\nchmod +x /usr/local/bin/nvidia-smi")
    (tmp_path / "check.yml").write_text(CHECK)
    command = ["ansible-playbook", "-i", "inventory/lab", str(tmp_path / "check.yml")]
    roles = {"ANSIBLE_ROLES_PATH": str(ROOT / "roles")}
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | roles, capture_output=True, text=True, timeout=300)
    for node in CARDS:
        on(node, "rm /usr/local/bin/nvidia-smi")
    assert (done.returncode == 0) is (message == "")
    assert message in re.sub(r"\s+", " ", done.stdout + done.stderr)


def test_nothing_is_changed_under_a_job(repository):
    on("node2", "systemd-run --unit=minos-train@demo.service sleep 600")
    done = site(*repository, "-e", "nvidia_cuda_toolkit=true", check=False)
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert (
        "node2: minos-train@demo.service runs there, and the driver would change under it (cuda-toolkit-13-0)" in said
    )
    assert changes(site(*repository)) == dict.fromkeys(["localhost", "node1", "node2", "node3"], 0)
    on("node2", "systemctl stop minos-train@demo.service")


def test_toolkits_and_the_compute_mode_are_there_for_who_wants_them(repository):
    assert set(ASKED_FOR) & set(on("node1", "dpkg-query --show --showformat='${Package}\\n'").split()) == set()
    wish = [*("-e", "nvidia_cuda_toolkit=true"), *("-e", "nvidia_container_toolkit=true")]
    wish += ["-e", "nvidia_compute_mode=exclusive_process"]
    site(*repository, *wish)
    shown = on("node1", "dpkg-query --show --showformat='${Package}\\n'").split()
    assert set(ASKED_FOR) <= set(shown)
    assert "--compute-mode=EXCLUSIVE_PROCESS" in on("node1", "systemctl cat minos-nvidia.service")
    assert set(changes(site(*repository, *wish)).values()) == {0}


def test_a_containers_driver_is_its_hosts(repository):
    """Without nvidia_load: false, which says that a disk image is being prepared, these are nodes without a card."""
    done = site(*repository, "-e", "nvidia_load=true")
    assert "No NVIDIA GPU in node1, node2, node3" in done.stdout


def test_secure_boot_stops_it_with_the_steps(repository):
    on(
        "node1",
        "mkdir -p /var/tmp/efi/efivars; printf '\\006\\000\\000\\000\\001' >/var/tmp/efi/efivars/SecureBoot-8be4",
    )
    done = site(*repository, "-e", "nvidia_efi_path=/var/tmp/efi", check=False)
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert done.returncode != 0
    assert "node1: Secure Boot is on there" in said and "(2) sudo mokutil --import /var/lib/dkms/mok.pub" in said


def test_an_unknown_card_is_a_question(repository):
    on("node1", "echo 0x3001 > /var/tmp/pci/0000:01:00.0/device")
    done = site(*repository, check=False)
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert done.returncode != 0
    assert "node1: nobody here knows the card 10de:3001 at 0000:01:00.0" in said
    assert "Write nvidia_cards: {'3001': blackwell}" in said


RESET = """
- hosts: cluster
  become: true
  tasks:
    - name: Take it back
      ansible.builtin.include_role: {name: nvidia, tasks_from: reset}
"""
FILES = (
    "/etc/modprobe.d/minos-nvidia.conf /etc/apt/sources.list.d/minos-nvidia* /etc/apt/preferences.d/minos-nvidia "
    "/etc/apt/keyrings/minos-nvidia* /etc/systemd/system/minos-nvidia.service /etc/minos/cards.env "
    "/var/lib/minos-nvidia"
)


def test_reset_takes_back_what_it_made_and_leaves_the_driver(repository, tmp_path):
    on("node1", "apt-mark hold nano")
    there = on("node1", f"ls -d {FILES} 2>/dev/null | wc -l")
    assert int(there) == 8, "the test knows the files"
    (tmp_path / "reset.yml").write_text(RESET)
    roles = {"ANSIBLE_ROLES_PATH": str(ROOT / "roles")}
    command = ["ansible-playbook", "-i", "inventory/lab", str(tmp_path / "reset.yml")]
    for expected in (True, False):
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | roles, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:]
        assert (changes(done)["node1"] > 0) is expected
        assert changes(done)["node3"] == 0
    assert on("node1", f"ls -d {FILES} 2>/dev/null; true") == ""
    assert on("node1", "apt-mark showhold") == "nano", "the owner's own hold stays"
    assert set(PACKAGES) <= set(versions("node1"))
