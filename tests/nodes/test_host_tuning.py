"""host_tuning: awake, on time, undisturbed by upgrades, with room for files and pinned memory."""

import pytest

CAP_SYS_RESOURCE = 24


def test_host_tuning_never_sleeps(host):
    for target in ("sleep", "suspend", "hibernate", "hybrid-sleep"):
        assert host.run(f"systemctl is-enabled {target}.target").stdout.strip() == "masked", target


def test_host_tuning_keeps_the_time(host):
    assert host.service("chrony").is_enabled
    # A container shares its host's clock: chrony's own unit does not start there.
    assert host.service("chrony").is_running or host.run("systemd-detect-virt --container").rc == 0


def test_host_tuning_no_upgrades_on_a_timer(host):
    assert host.run("systemctl is-enabled apt-daily-upgrade.timer").stdout.strip() == "disabled"
    assert not host.service("apt-daily-upgrade.timer").is_running


def test_host_tuning_holds_kernel_and_driver_back(host):
    held = host.check_output("apt-config dump Unattended-Upgrade::Package-Blacklist")
    assert "nvidia" in held and "linux-(image" in held


def test_host_tuning_limits_reach_a_login(host, told):
    capabilities = int(host.check_output("grep CapBnd /proc/1/status").split()[1], 16)
    if not capabilities >> CAP_SYS_RESOURCE & 1:
        pytest.skip("a container that may not raise limits, not even as root")
    assert host.check_output("su - %s -c 'ulimit -n; ulimit -l'", told.user).split() == ["1048576", "unlimited"]


def test_host_tuning_limits_are_set(host, told):
    limits = host.file("/etc/security/limits.d/60-minos.conf").content_string
    assert f"{told.user} - memlock unlimited" in limits and f"{told.user} - nofile 1048576" in limits


def test_host_tuning_updates_restart_no_job(host):
    if not host.file("/etc/needrestart/conf.d").is_directory:
        pytest.skip("there is no needrestart")
    asked = "our %nrconf; do '/etc/needrestart/conf.d/60-minos.conf'; print keys %{$nrconf{override_rc}}"
    assert "minos-" in host.check_output("perl -e %s", asked)
