"""cluster_hosts: what cloud-init is told of /etc/hosts, which it would write anew at each boot."""

import subprocess

import yaml
from paths import ROOT
from rendering import templar, trust_as_template


def test_cloud_init_reads_that_the_file_is_not_its(tmp_path):
    file = tmp_path / "99-minos-hosts.cfg"
    tasks = yaml.safe_load((ROOT / "roles/cluster_hosts/tasks/main.yml").read_text())
    (told,) = (each["ansible.builtin.shell"]["cmd"] for each in tasks if "cloud-init" in each["name"])
    command = templar("cluster_hosts", __cluster_hosts_cloud=str(file)).template(trust_as_template(told))
    subprocess.run(["sh", "-c", command], check=True)
    assert yaml.safe_load(file.read_text()) == {"manage_etc_hosts": False}
