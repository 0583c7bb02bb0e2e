"""Wrong arguments: one line that says what to write instead, and nothing changed."""

import pytest

from lab import cli, host, image, network, process, state
from lab.config import LabError, Paths, lab_name
from lab.state import LabState


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["up", "-n", "0"], "'0' is not a number of nodes from 1 to 50"),
        (["up", "-n", "x"], "'x' is not a number of nodes"),
        (["up", "-n", "51"], "'51' is not a number of nodes"),
        (["bandwidth", "node1", "fast"], "'fast' is no rate: write for example 100mbit"),
        (["bandwidth", "node1", "0mbit"], "'0mbit' is no rate"),
        (["cable", "node1", "out"], "invalid choice: 'out'"),
        (["kill"], "required: NODE"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "required: VERB"),
    ],
)
def test_one_line_and_exit_2(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert says in said
    assert said.count("\n") == 1 and said.startswith("lab: ")


@pytest.fixture
def half_a_lab(tmp_path, monkeypatch) -> Paths:
    """A state file with one node, no process behind it, in the test's own directory."""
    for place in ("lib", "run"):
        (tmp_path / place).mkdir()
        monkeypatch.setattr(Paths, place, property(lambda self, place=place: tmp_path / place))
    monkeypatch.setattr(Paths, "lock", property(lambda self: tmp_path / "lock"))
    monkeypatch.setattr(host, "become_root", lambda arguments: None)
    monkeypatch.setenv("MINOS_LAB", "unit")
    paths = Paths("unit")
    made = LabState(kind="container", subnet="10.1.2.0/24", uplink="10.1.3.0/24", owner=0, ready=True)
    made.add_node("node1")
    state.save(paths, made)
    (tmp_path / "lib/private").mkdir()
    paths.ssh_key.touch()
    return paths


@pytest.mark.parametrize(
    "arguments",
    [
        ["kill", "node9"],
        ["start", "node9"],
        ["cable", "node9", "down"],
        ["bandwidth", "node9", "1mbit"],
        ["reset", "node9"],
        ["ssh", "node9", "true"],
        ["exec", "node9", "true"],
    ],
)
def test_unknown_node_is_named_with_those_there_are(arguments, half_a_lab, capsys):
    before = half_a_lab.state.read_text()
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == "lab: no node 'node9' in this lab; it has node1\n"
    assert half_a_lab.state.read_text() == before


@pytest.mark.parametrize("name", ["Lab", "my-lab", "1lab", "a" * 13, "a.b", "../x", ""])
def test_lab_name_that_cannot_be_part_of_a_kernel_name(name, monkeypatch):
    monkeypatch.setenv("MINOS_LAB", name)
    with pytest.raises(LabError, match=r"MINOS_LAB=.*small letters"):
        lab_name()


def test_missing_packages_are_listed_with_the_reason(monkeypatch):
    monkeypatch.setattr(host.shutil, "which", lambda tool: None if tool in ("socat", "nft") else f"/bin/{tool}")
    wanted = host.missing()
    assert wanted["nftables"] == "the LAN's router"
    assert "SSH" in wanted["socat"]
    assert "iproute2" not in wanted


def test_no_apt_on_this_host(monkeypatch):
    monkeypatch.setattr(host.shutil, "which", lambda tool: None)
    with pytest.raises(LabError, match=r"install these first, this host has no apt-get: .*mmdebstrap"):
        host.install_missing()


def test_rates():
    assert [network.rate_in_bits(rate) for rate in ("500kbit", "100mbit", "2.5gbit")] == [5e5, 1e8, 2.5e9]


def test_a_failed_command_is_reported_with_its_last_words():
    with pytest.raises(LabError, match=r"`ls /does/not/exist` failed with 2: .*No such file"):
        process.run("unit", "ls", "/does/not/exist")


def test_suites():
    assert image.CONTAINER.suite == "bookworm"
    assert "Suites: trixie-security\n" in image._sources("trixie", {})
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["up", "--suite", "sid"])


def test_mirror_of_the_host_replaces_debians(monkeypatch):
    sources = image._sources("bookworm", {"main": "http://mirror.lan/debian"})
    assert "URIs: http://mirror.lan/debian\n" in sources
    assert f"URIs: {image.MIRRORS['security']}\n" in sources
