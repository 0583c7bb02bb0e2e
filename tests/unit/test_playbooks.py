"""What holds for every playbook: it reads the inventory first, and names groups, not expressions."""

import subprocess

import pytest
import yaml
from paths import PLAYBOOKS, ROOT

GROUPS = {"localhost", "head", "cluster", "planned_nodes", "job_nodes", "job_head"}
EVERY = pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: str(path.relative_to(ROOT)))


@EVERY
def test_starts_with_preflight(playbook):
    first = yaml.safe_load(playbook.read_text())[0]
    imported = first.get("ansible.builtin.import_playbook", first.get("import_playbook", ""))
    assert imported.endswith("preflight.yml") or playbook.name == "preflight.yml"


@EVERY
def test_hosts_are_literal_groups(playbook):
    for play in yaml.safe_load(playbook.read_text()):
        if "hosts" in play:
            assert play["hosts"] in GROUPS or playbook.name == "preflight.yml"
            assert not {"tasks", "vars", "when"} & set(play)


@EVERY
def test_plays_that_change_several_nodes_stop_together(playbook):
    # These only look, or go on without a node that is off.
    looking = {"status.yml", "jobs.yml", "logs.yml", "stop.yml", "resume.yml", "clean.yml", "export.yml"}
    looking |= {"parity.yml", "preflight.yml", "cloud_rules.yml", "print.yml"}
    for play in yaml.safe_load(playbook.read_text()):
        each_for_itself = play.get("name") == "Give the nodes back"
        several = play.get("hosts") in {"cluster", "planned_nodes", "job_nodes"}
        if several and playbook.name not in looking and not each_for_itself:
            assert play["any_errors_fatal"] is True


@EVERY
def test_the_inventory_that_ships_is_refused(playbook):
    """Nobody provisions a stranger's 192.168.1.100, not with --limit either: one task, on this machine, fails."""
    for limit in ([], ["--limit", "node2"]):
        command = ["ansible-playbook", playbook, "-e", "nnodes=3 job=demo", *limit]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        assert "set minos_inventory_ready: true" in done.stdout + done.stderr
        recap = [line for line in done.stdout.partition("PLAY RECAP")[2].splitlines() if "ok=" in line]
        assert len(recap) == 1 and "unreachable=0    failed=1" in recap[0]
        assert recap[0].startswith("node2" if limit else "localhost")


def test_site_reads_as_a_table_of_contents():
    assert len((ROOT / "site.yml").read_text().splitlines()) <= 45
