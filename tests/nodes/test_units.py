"""What every unit of ours has in common, whichever role installed it."""

import re

LIMIT = 5.0  # systemd-analyze's exposure, 0 to 10; templates/minos-train@.service.j2 says what training needs open


def test_units_are_sandboxed(host):
    units = host.check_output("cd /etc/systemd/system && ls -d minos-*.service 2>/dev/null || true").split()
    for unit in units:
        shown = host.run("systemd-analyze security --no-pager %s", unit.replace("@", "@check"))
        exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", shown.stdout)
        assert exposure, f"{unit}: {shown.stderr}"
        assert float(exposure[1]) <= LIMIT, unit
