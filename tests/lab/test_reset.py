"""playbooks/reset.yml gives nodes back as they were: a bare one, and one with an owner's own settings. In its own lab.

The tests build on each other and run in their order. Without the Python environment, which takes longer than all of the
rest, and the store, which needs it: tests/lab/test_cluster.py resets those. Addresses and NFS are tried in tests/vm.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.fingerprint import differences, take
from tests.labs import Lab, changed

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

LAB = Lab("reset")
lab, on, playbook = LAB.command, LAB.inside, LAB.playbook
NODES = ["node1", "node2"]

SITE = ("site.yml", "--skip-tags", "python_env,rendezvous,tensorboard")

# Chrony, which comes with us, takes this one's place.
TIME_SERVICE = "apt-get -qq update && apt-get -qq install --yes --no-install-recommends systemd-timesyncd >/dev/null"
# What the owner of node2 had before: a firewall that is on, but lets in; a time service; a machine that never sleeps,
# upgraded by hand; another name; a directory where ours would be.
OWNERS = """set -e
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update && apt-get -qq install --yes --no-install-recommends ufw chrony >/dev/null
ufw allow 22/tcp comment 'my ssh' && ufw allow 8080/tcp && ufw default allow incoming && ufw --force enable
systemctl start ufw
apt-mark auto iptables
ln -s /dev/null /etc/systemd/system/sleep.target
systemctl disable --now apt-daily-upgrade.timer
hostnamectl hostname oldname && sed -i 's/^127.0.1.1.*/127.0.1.1 oldname.lan oldname node2/' /etc/hosts
install -d -m 2775 -o 1000 -g 1000 /opt/minos
systemctl daemon-reload
"""


def reset(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return playbook("playbooks/reset.yml", *arguments, check=check)


def look(node: str) -> dict:
    return take(lambda *argv: lab("exec", node, *argv).stdout)


def refused(*arguments: str) -> str:
    """What it says when it must not go on; nothing may have changed then."""
    done = reset(*arguments, check=False)
    assert done.returncode != 0 and set(changed(done).values()) == {0}, done.stdout[-3000:]
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


def compared(node: str, before: dict) -> list[str]:
    return differences(before[node], look(node))


@pytest.fixture(scope="module")
def before():
    """How the nodes were; now they are a cluster that has worked, with a job of its owner's."""
    lab("down")
    lab("up", "-n", "2")
    on("node1", TIME_SERVICE)
    on("node2", OWNERS)
    on("node1", "install -d -o 2600 -g 2600 /srv/minos/packages && echo mine > /srv/minos/packages/mine")
    fingerprints = {node: look(node) for node in NODES}
    playbook(*SITE)
    for node in NODES:
        on(node, "install -d -o 2600 -g 2600 /var/lib/minos/jobs/one && echo data > /var/lib/minos/jobs/one/data")
    on("node1", "install -d -o 2600 -g 2600 /srv/minos/jobs/one && echo data > /srv/minos/jobs/one/data")
    on("node2", "apt-get -qq install --yes python3-rich >/dev/null")  # came with us, and now the owner wants it, too
    yield fingerprints
    lab("down")


def test_nobody_is_asked_without_a_terminal(before):
    assert "Nothing was changed: type yes when you are asked, or write -e sure=true." in refused()


def test_a_running_job_is_not_cut_off(before):
    on("node2", "systemd-run --unit=minos-train@demo sleep 600")
    said = refused("-e", "sure=true")
    on("node2", "systemctl stop minos-train@demo")
    assert "Job demo is running on node2: stop it first (playbooks/stop.yml -e job=demo)." in said


def test_the_head_leaves_last(before):
    assert "node1 cannot leave before node2: they need its store or its share." in refused(
        "-e", "sure=true", "-l", "node1"
    )


def test_a_node_that_is_off_is_said_and_no_other_is_touched(before):
    lab("kill", "node2")
    said = refused("-e", "sure=true")
    lab("start", "node2")
    assert "node2 does not answer: switch it on; if it never will again, take its line out of the inventory." in said


def test_data_are_asked_for_twice(before):
    said = refused("-e", "sure=true remove_data=true remove_data_really=/srv")
    assert "-e remove_data=true -e remove_data_really=/srv/minos" in said
    assert on("node1", "cat /srv/minos/jobs/one/data /var/lib/minos/jobs/one/data") == "data\ndata"


def test_check_mode_shows_it_and_changes_nothing(before):
    done = reset("--check", "--diff", "-e", "sure=true")
    assert min(changed(done)[node] for node in NODES) > 10
    assert on("node2", "getent passwd minos | cut -d: -f3; hostname; ls /etc/minos") == "2600\nnode2\njobs"


def test_one_node_leaves_and_is_as_before_but_for_the_jobs(before):
    done = reset("-e", "sure=true", "-l", "node2")
    assert "node2: stays: jobs/one in /var/lib/minos" in done.stdout and "number 2600 as owner" in done.stdout
    left = compared("node2", before)
    kept = [
        line
        for line in left
        if re.match("(wanted )?packages: python3-(rich|markdown-it|mdurl|pygments|pkg-resources): ", line)
    ]
    assert len([line for line in kept if line.startswith("packages")]) == 5, "the owner's package, and what it needs"
    assert [line for line in left if line not in kept] == [
        "folders: /var/lib/minos: 'absent' is now 'drwxr-x--- 2600:2600'"
    ]
    assert (
        on("node2", "find /var/lib/minos -type f; cat /srv/minos/jobs/one/data") == "/var/lib/minos/jobs/one/data\ndata"
    )
    assert "minos" in on("node1", "getent passwd minos; ls /etc/minos")


def test_the_rest_leave_with_their_data_and_nothing_remains(before):
    assert on("node1", "ls /lib/systemd/systemd-timesyncd 2>/dev/null; true") == "", "chrony has taken its place"
    reset("-e", "sure=true remove_data=true remove_data_really=/srv/minos")
    assert compared("node1", before) == []
    assert on("node1", "cd /srv/minos && ls -A && cat packages/mine") == "packages\nmine", "that folder is the owner's"


def test_a_second_time_nothing_changes(before):
    done = reset()
    assert set(changed(done).values()) == {0}
    assert "node1: nothing of Minos is there" in done.stdout


def test_site_works_again(before):
    playbook(*SITE)
    assert on("node2", "hostname; ufw status | head -1") == "node2\nStatus: active"
    reset("-e", "sure=true remove_data=true remove_data_really=/srv/minos")
    assert compared("node1", before) == []
