"""What holds for every playbook: it reads the inventory first, and names groups, not expressions."""

import subprocess

import pytest
import yaml
from paths import PLAYBOOKS, ROOT

GROUPS = {"localhost", "head", "cluster", "planned_nodes", "job_nodes", "job_head"}
EVERY = pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: str(path.relative_to(ROOT)))


@EVERY
def test_starts_with_preflight(playbook):
    if playbook.name == "preflight.yml":
        return
    first = yaml.safe_load(playbook.read_text())[0]
    imported = next(first.pop(key) for key in list(first) if key.endswith("import_playbook"))
    assert imported == ("" if playbook.parent.name == "playbooks" else "playbooks/") + "preflight.yml"
    assert set(first) <= {"name", "vars"}, "nothing that could skip it"
    assert set(first.get("vars", {})) <= {"preflight_partial_ok"}


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


# That the others begin with the same play, and nothing before it, is looked up above: each run costs seconds.
@pytest.mark.parametrize("name", ["site.yml", "train.yml", "playbooks/preflight.yml", "playbooks/reset.yml"])
@pytest.mark.parametrize("limit", [[], ["--limit", "node2"]], ids=["all", "one"])
def test_the_inventory_that_ships_is_refused(name, limit):
    """Nobody provisions a stranger's 192.168.1.100, not with --limit either: one task, on this machine, fails."""
    command = ["ansible-playbook", name, "-e", "nnodes=3 job=demo", *limit]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "set minos_inventory_ready: true" in done.stdout + done.stderr
    recap = [line for line in done.stdout.partition("PLAY RECAP")[2].splitlines() if "ok=" in line]
    assert len(recap) == 1 and "unreachable=0    failed=1" in recap[0]
    assert recap[0].startswith("node2" if limit else "localhost")


def test_site_reads_as_a_table_of_contents():
    assert len((ROOT / "site.yml").read_text().splitlines()) <= 45
