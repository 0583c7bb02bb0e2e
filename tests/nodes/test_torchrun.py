"""torchrun and train.yml: the folders of jobs, and the units where a job has been."""

import pytest


def test_torchrun_the_folders_of_jobs(host, told):
    settings, jobs = host.file("/etc/minos/jobs"), host.file(f"{told.state_path}/jobs")
    assert (settings.user, settings.mode) == ("root", 0o755)
    assert (jobs.uid, jobs.gid, jobs.mode) == (told.uid, told.gid, 0o750)


def units(host):
    if not host.file("/etc/minos/jobs").listdir():
        pytest.skip("no job has been put on this node yet")
    return ["minos-train", "minos-train-failed"]


def test_torchrun_the_units_are_valid(host):
    for unit in units(host):
        verified = host.run(
            "sh -c 'd=$(mktemp -d); cp /etc/systemd/system/%s@.service $d/%s@.service; "
            "systemd-analyze verify --man=no $d/%s@check.service; status=$?; rm -r $d; exit $status'",
            unit, unit, unit,
        )  # fmt: skip
        assert (verified.rc, verified.stderr) == (0, ""), unit


def test_torchrun_the_units_are_the_same_on_every_node(host, nodes):
    for unit in units(host):
        path = f"/etc/systemd/system/{unit}@.service"
        for peer, other in nodes.items():
            if other.file("/etc/minos/jobs").listdir():
                assert host.file(path).content == other.file(path).content, (
                    f"{unit}@.service differs from that on {peer}"
                )


def test_torchrun_systemd_runs_what_is_in_the_files(host):
    for unit in units(host):
        shown = host.check_output(f"systemctl show --property=NeedDaemonReload,LoadState {unit}@check.service")
        assert set(shown.split()) == {"NeedDaemonReload=no", "LoadState=loaded"}, unit


def test_torchrun_settings_are_not_for_everybody(host, told):
    for file in host.file("/etc/minos/jobs").listdir():
        settings = host.file(f"/etc/minos/jobs/{file}")
        assert (settings.user, settings.gid, settings.mode) == ("root", told.gid, 0o640)
