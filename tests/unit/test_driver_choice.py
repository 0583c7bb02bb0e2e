"""nvidia: which driver a node gets. No card and no Ubuntu is here: the cases are facts, each with its source."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paths import ROOT

sys.path.insert(0, str(ROOT / "roles/nvidia"))

from driver_choice import Node, Wish, choose, cuda_of, read
from driver_choice.answer import Repository, repositories
from driver_choice.sources import missing
from driver_choice.table import NAMES, TABLE, architecture

CASES = yaml.safe_load((Path(__file__).parent / "driver_cases.yml").read_text())
CODENAMES = {"debian 12": "bookworm", "debian 13": "trixie", "ubuntu 22.04": "jammy", "ubuntu 24.04": "noble"}


def node(case):
    debian = case["system"].startswith("debian")
    return Node(
        cards=tuple((f"0000:{bus:02x}:00.0", card) for bus, card in enumerate(case["cards"], start=1)),
        system=case["system"],
        codename=CODENAMES.get(case["system"], "sid"),
        kernels=tuple(case.get("kernels", ["amd64" if debian else "generic"])),
        secure_boot=case.get("secure_boot", False),
        enrolled=tuple(case.get("enrolled", [])),
        desktop=case.get("desktop", False),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_cases(case):
    assert case["source"]
    wish = Wish(cuda=case.get("cuda", "13.0"), **case.get("wish", {}))
    if "said" in case:
        with pytest.raises(ValueError) as refused:
            choose(node(case), wish, case.get("peers", []))
        assert case["said"] in str(refused.value) and "\n" not in str(refused.value)
        return
    plan = choose(node(case), wish, case.get("peers", []))
    assert plan.packages == case["packages"]
    assert (plan.flavour, plan.repository) == (case["modules"], case["repository"])
    assert plan.environment == case.get("environment", {})
    assert plan.nvidia.get("for") == case.get("theirs", "driver" if plan.repository == "nvidia" else None)


def test_there_are_cases_enough():
    assert len(CASES) >= 30
    assert {case["system"] for case in CASES} >= set(CODENAMES)


def test_every_line_of_the_table_has_its_source():
    lines = [*TABLE["architectures"].values(), *TABLE["cuda"], *TABLE["nccl"], TABLE["nvidia_repository"]]
    lines += [branch for each in TABLE["distributions"].values() for branch in each["branches"].values()]
    assert all(line["source"] for line in lines)


def test_no_id_belongs_to_two_architectures():
    spans = sorted(
        (int(low, 16), int(high or low, 16))
        for facts in TABLE["architectures"].values()
        for low, _, high in (span.partition("-") for span in facts["ids"])
    )
    assert all(before[1] < after[0] for before, after in itertools.pairwise(spans))


def test_the_lock_says_which_cuda():
    assert cuda_of((ROOT / "training/requirements-cuda.txt").read_text()) == "13.0"
    assert cuda_of((ROOT / "training/requirements-cpu.txt").read_text()) == ""
    assert cuda_of("x==1\nnvidia-cuda-runtime-cu12==12.6.77 \\\n") == "12.6"


# --- a driver that is there already ----------------------------------------------------------------------------
def there(**more):
    return Node(cards=(("0000:01:00.0", "2684"),), system="ubuntu 24.04", kernels=("generic",), **more)


@pytest.mark.parametrize("version", ["580.95.05", "610.57.04"])
def test_the_owners_driver_stays_where_it_will_do(version):
    plan = choose(there(driver=version), Wish(cuda="13.0"))
    assert plan.keep and plan.packages == [] and plan.branch == int(version[:3])


def test_the_owners_driver_that_is_too_old_is_not_replaced_unasked():
    with pytest.raises(
        ValueError, match=r"driver 570\.86 is installed there, not by this role, and driver 580 or newer"
    ):
        choose(there(driver="570.86"), Wish(cuda="13.0"))
    assert "nvidia-utils-580-server" in choose(there(driver="570.86"), Wish(cuda="13.0", replace=True)).packages


def test_a_driver_of_nvidias_installer_is_never_mixed_with_packages():
    old = there(driver="570.86", foreign="/usr/bin/nvidia-smi")
    with pytest.raises(ValueError, match="sudo nvidia-uninstall"):
        choose(old, Wish(cuda="13.0", replace=True))
    assert choose(there(driver="595.10", foreign="/usr/bin/nvidia-smi"), Wish(cuda="13.0")).keep


def test_our_own_is_looked_after():
    assert not choose(there(driver="580.95.05", ours=("nvidia-utils-580-server",)), Wish(cuda="13.0")).keep


def test_a_containers_driver_is_its_hosts():
    assert choose(there(container=True), Wish(cuda="13.0")).keep
    assert not choose(there(container=True), Wish(cuda="13.0", load=False)).keep


# --- apt's sources ---------------------------------------------------------------------------------------------
KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"


def debian(*repositories):
    return Node(system="debian 12", codename="bookworm", repositories=tuple(Repository(*each) for each in repositories))


def test_what_is_missing_is_added_from_the_owners_mirror_with_his_key():
    main = [
        ("/etc/apt/a.sources", "http://mirror.lan/debian", suite, "main", KEY)
        for suite in ("bookworm", "bookworm-updates")
    ]
    security = ("/etc/apt/b.list", "http://security.lan", "bookworm-security", "main", "")
    theirs = ("/etc/apt/c.list", "https://elsewhere.example", "stable", "main", "/x.gpg")
    lacking = "contrib non-free non-free-firmware"
    assert missing(debian(*main, security, theirs), "distribution") == [
        {
            "uri": "http://mirror.lan/debian",
            "suites": "bookworm bookworm-updates",
            "components": lacking,
            "signed_by": KEY,
        },
        {"uri": "http://security.lan", "suites": "bookworm-security", "components": lacking, "signed_by": ""},
    ]


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        (
            ["URIs: mirror+file:///etc/apt/mirrors/debian.list", f"Signed-By: {KEY}"],
            "mirror+file:/etc/apt/mirrors/debian.list",
        ),
        (["URIs: http://a.lan/debian/ http://b.lan/debian", f"Signed-By: {KEY}"], "http://b.lan/debian"),
        ([f"deb [arch=amd64 signed-by={KEY}] https://a.lan/debian trixie main"], "https://a.lan/debian"),
        ([f"deb [ signed-by={KEY} ] file:/srv/mirror trixie main"], "file:/srv/mirror"),
        (["deb [signed-by=/other.gpg] https://a.lan trixie main", "URIs: https://b.lan"], None),
    ],
    ids=["a cloud image's", "deb822", "a line", "a folder", "another archive's"],
)
def test_an_archives_key_is_found_however_its_address_is_written(written, printed):
    """Two entries of one archive with different keys: apt reads none of its sources any more."""
    file = "/etc/apt/sources.list.d/debian.sources"
    sources = [f"{file}:1|{printed or 'https://b.lan'}/|trixie|main"]
    (found,) = repositories(sources, [f"{file}:{line}" for line in written])
    assert (found.uri, found.signed_by) == (printed or "https://b.lan", KEY if printed else "")


def test_what_the_owner_has_is_not_written_twice():
    have = ("main", "contrib", "non-free")
    mine = [("/etc/apt/sources.list", "http://m", "bookworm", component, "") for component in have]
    ours = ("/etc/apt/sources.list.d/minos-nvidia.sources", "http://m", "bookworm", "non-free-firmware", "")
    assert [each["components"] for each in missing(debian(*mine, ours), "distribution")] == ["non-free-firmware"]
    assert missing(debian(*mine), "nvidia") == []


def test_usual_sources_where_none_can_be_read():
    assert [each["suites"] for each in missing(debian(), "nvidia")] == [
        "bookworm bookworm-updates",
        "bookworm-security",
    ]


# --- the scan --------------------------------------------------------------------------------------------------
# As `lspci -nn` prints them on machines of their owners: ten cards, with the functions beside the picture, and cards of
# others. Sources: public bug reports and manuals of PCI passthrough; names as in pci.ids.
LSPCI = (Path(__file__).parent / "lspci.txt").read_text()
FOUND = {
    "0000:01:00.0": ("2c05", "blackwell"),
    "0000:02:00.0": ("2684", "ada"),
    "0000:03:00.0": ("2782", "ada"),
    "0000:04:00.0": ("2504", "ampere"),
    "0000:05:00.0": ("1e04", "turing"),
    "0000:06:00.0": ("13bc", "maxwell"),
    "0000:17:00.0": ("20b7", "ampere"),
    "0000:51:00.4": ("2235", "ampere"),
    "0000:82:00.0": ("2331", "hopper"),
    "0000:af:00.0": ("1eb8", "turing"),
}


def bus(folder, lines):
    """Write what the kernel shows beneath /sys/bus/pci/devices for lines of lspci."""
    for line in lines.splitlines():
        slot, kind = line.split()[0], line.split("[")[1].split("]")[0]
        vendor, device = line.rpartition("[")[2].split("]")[0].split(":")
        path = folder / f"0000:{slot}"
        path.mkdir(parents=True)
        for name, value in (("vendor", vendor), ("device", device), ("class", f"{kind}00")):
            (path / name).write_text(f"0x{value}\n")
    return folder


def looked(pci, efi="/nowhere", mark="/nowhere"):
    """Run the real script in the real shell, here."""
    script = f"pci={pci} efi={efi} mark={mark}\n{(ROOT / 'roles/nvidia/files/look.sh').read_text()}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return read(done.stdout)


def test_ten_cards_and_nothing_else(tmp_path):
    found = dict(looked(bus(tmp_path / "devices", LSPCI)).cards)
    assert found == {slot: device for slot, (device, _) in FOUND.items()}
    assert {slot: architecture(device, {}) for slot, device in found.items()} == {
        slot: name for slot, (_, name) in FOUND.items()
    }


def test_a_machine_without_a_bus(tmp_path):
    assert looked(tmp_path / "nothing").cards == ()


@pytest.mark.parametrize(("value", "on"), [(b"\x06\0\0\0\1", True), (b"\x06\0\0\0\0", False), (None, False)])
def test_secure_boot_as_the_firmware_says(tmp_path, value, on):
    if value:
        variables = tmp_path / "efi/efivars"
        variables.mkdir(parents=True)
        (variables / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(value)
    assert looked(tmp_path / "none", efi=tmp_path / "efi").secure_boot is on


def test_what_the_script_sees_here(tmp_path):
    (tmp_path / "mark").write_text("nvidia-smi\n")
    seen = looked(tmp_path / "none", mark=tmp_path / "mark")
    said = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    assert seen.system == f"{said['ID']} {said['VERSION_ID']}".replace('"', "")
    assert seen.ours == ("nvidia-smi",) and seen.running


def test_a_broken_answer_is_no_answer():
    with pytest.raises(ValueError, match="broke off"):
        read("\n@cards\n0000:01:00.0 0x2684\n")


PRINTED = """
@cards
0000:01:00.0 0x2C05
@container
none
@devices
@system
ID=ubuntu
VERSION_ID="24.04"
VERSION_CODENAME=noble
@running
6.8.0-45-generic
@kernels
6.8.0-45-generic
generic
amd64-dbg
@secureboot
   1
@enrolled
@desktop
@sources
/etc/apt/sources.list.d/ubuntu.sources:1|http://archive.ubuntu.com/ubuntu/|noble|main
/etc/apt/sources.list:2|http://old.lan/|noble-security|main
@keys
/etc/apt/sources.list.d/ubuntu.sources:URIs: http://archive.ubuntu.com/ubuntu/
/etc/apt/sources.list.d/ubuntu.sources:Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg
/etc/apt/sources.list:deb [arch=amd64 signed-by=/etc/k.gpg] http://old.lan noble-security main
@ours
@packaged
libnvidia-compute-570 570.86-0ubuntu1
nvidia-utils-570 570.86.15-0ubuntu1
@loaded
@foreign
@nouveau
/sys/module/nouveau
@jobs
minos-train@demo.service
@end
"""


def test_an_answer_is_read():
    seen = read(PRINTED)
    assert (seen.cards, seen.system, seen.codename) == ((("0000:01:00.0", "2c05"),), "ubuntu 24.04", "noble")
    assert seen.kernels == ("generic",) and seen.secure_boot and seen.nouveau and not seen.container
    assert seen.driver == "570.86.15" and seen.jobs == ("minos-train@demo.service",)
    assert [(each.uri, each.signed_by) for each in seen.repositories] == [
        ("http://archive.ubuntu.com/ubuntu", "/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
        ("http://old.lan", "/etc/k.gpg"),
    ]


def test_architectures_are_in_the_order_of_their_age():
    assert NAMES[1] == "maxwell" and NAMES[-1] == "blackwell"


def test_headers_without_a_meta_package_are_those_of_the_kernel_that_runs_unless_it_is_a_hosts():
    card = {"cards": (("0000:01:00.0", "2204"),), "system": "debian 12", "running": "6.1.0-38-amd64"}
    assert "linux-headers-6.1.0-38-amd64" in choose(Node(**card), Wish(cuda="12.6")).packages
    inside = choose(Node(**card, container=True), Wish(cuda="12.6", load=False))
    assert not [name for name in inside.packages if name.startswith("linux-")]
