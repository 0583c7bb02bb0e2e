"""What VM nodes are made with, as far as it can be seen without booting one."""

import contextlib
import http.client
import io
import json
import socket
import tarfile
import threading
from pathlib import Path

import pytest

from lab import cli, disk, inventory, packages, qemu, qmp
from lab.config import LabError, Paths
from lab.hostsettings import HostSettings
from lab.state import LabState


@pytest.fixture
def paths(tmp_path, monkeypatch) -> Paths:
    monkeypatch.setattr(Paths, "lib", property(lambda self: tmp_path / "lib"))
    monkeypatch.setattr(Paths, "run", property(lambda self: tmp_path / "run"))
    (tmp_path / "lib/nodes").mkdir(parents=True)
    return Paths("unit")


@pytest.fixture
def lab() -> LabState:
    made = LabState(kind="vm", subnet="10.1.2.0/24", uplink="10.1.3.0/24", owner=0, ready=True, accelerator="tcg")
    for name in ("node1", "node2"):
        made.add_node(name)
    return made


def test_to_ansible_vm_nodes_differ_in_their_nic_and_in_who_shares_the_directory(paths, lab):
    found = inventory.inventory(paths, lab, HostSettings())
    assert found["_meta"]["hostvars"]["node2"]["lan_interface"] == "enp0s2"
    lab.kind = "container"
    other = inventory.inventory(paths, lab, HostSettings())
    for host in (*found["_meta"]["hostvars"].values(), *other["_meta"]["hostvars"].values()):
        del host["lan_interface"]
    lab.kind, lab.server = "vm", "node2"
    assert inventory.inventory(paths, lab, HostSettings())["nfs_server"] == {"hosts": ["node2"]}
    assert found.pop("nfs_server") == {"hosts": found["head"]["hosts"]}
    found["cluster"]["children"].remove("nfs_server")
    assert found == other


def test_package_folders_of_the_host_are_on_the_network_of_a_vm(lab, tmp_path):
    settings = HostSettings(
        find_links=["/wheels", "https://packages.example/torch/"], extra_index_urls=["file:///pypi/simple"]
    )
    found = inventory.shared_variables(Paths("unit"), lab, settings)
    assert found["python_env_find_links"] == ["http://10.1.2.1:8099/wheels/", "https://packages.example/torch/"]
    assert found["python_env_extra_index_urls"] == ["http://10.1.2.1:8099/pypi/simple/"]
    lab.kind = "container"
    found = inventory.shared_variables(Paths("unit"), lab, settings)
    assert found["python_env_find_links"][0] == "/wheels"
    assert found["python_env_extra_index_urls"] == ["file:///pypi/simple"]


def test_every_node_has_an_address_to_move_to(lab):
    assert [lab.spare_address(name) for name in lab.nodes] == ["10.1.2.111", "10.1.2.112"]


def test_a_machine_from_a_snapshot_waits_for_the_others(paths, lab):
    words = qemu.argv(paths, lab, "node1")
    assert "-S" not in words and "-loadvm" not in words
    words = qemu.argv(paths, lab, "node1", snapshot="ready")
    assert words[-3:] == ["-S", "-loadvm", "ready"]


# A stand-in for QEMU: no machine has a KVM that works and one that hangs.
@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo '[ 0.9] Run /bin/true as init process'", "kvm"),
        ("echo 'Could not access KVM kernel module' >&2; exit 1", "tcg"),
        ("echo '[ 0.1] Linux version 6.1'; exec sleep 60", "tcg"),  # hangs
        ("echo '[ 0.1] Linux version 6.1'", "tcg"),  # resets itself without end: -no-reboot makes that an exit
    ],
)
def test_kvm_is_used_only_where_a_guest_gets_to_its_first_program(script, found, paths, tmp_path, monkeypatch):
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(qemu, "QEMU", str(program))
    monkeypatch.setattr(qemu, "PROBE_PATIENCE", 1.0)
    monkeypatch.setattr(qemu.os, "access", lambda *_: True)
    assert qemu.accelerator(paths) == found


def test_without_the_device_nothing_is_tried(paths, monkeypatch):
    monkeypatch.setattr(qemu.os, "access", lambda *_: False)
    monkeypatch.setattr(qemu, "QEMU", "/does/not/exist")
    assert qemu.accelerator(paths) == "tcg"


def test_kernel_and_ram_disk_come_out_of_the_image(paths, tmp_path):
    image = tmp_path / "image.tar"
    with tarfile.open(image, "w") as archive:
        for name, text in {
            "boot/vmlinuz-6.1.0-9": b"kernel",
            "boot/initrd.img-6.1.0-9": b"disk",
            "etc/x": b"-",
        }.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    disk.extract_boot_files(paths, image)
    assert {name: file.read_bytes() for name, file in disk.boot_files(paths).items()} == {
        "vmlinuz": b"kernel",
        "initrd.img": b"disk",
    }


@contextlib.contextmanager
def peer(path: Path, talk):
    """A Unix socket on which `talk(stream)` answers one client."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as stream, contextlib.suppress(OSError, ValueError):
                talk(stream)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(5)


def say(stream, *objects, prefix: bytes = b"") -> None:
    stream.write(prefix + b"".join(json.dumps(each).encode() + b"\n" for each in objects))
    stream.flush()


def monitor_that_answers(*answers):
    def talk(stream):
        say(stream, {"QMP": {}})
        stream.readline()
        say(stream, {"return": {}})
        stream.readline()
        say(stream, *answers)

    return talk


def test_monitor_passes_over_events(tmp_path):
    answers = monitor_that_answers({"event": "STOP", "data": {}}, {"return": {"status": "paused"}})
    with peer(tmp_path / "m", answers):
        assert qmp.monitor(tmp_path / "m", "query-status") == {"status": "paused"}


def test_monitors_refusal_is_one_line(tmp_path):
    answers = monitor_that_answers({"error": {"class": "GenericError", "desc": "Device 'nic' not found"}})
    with peer(tmp_path / "m", answers), pytest.raises(LabError, match=r"^set_link: Device 'nic' not found$"):
        qmp.monitor(tmp_path / "m", "set_link", name="nic", up=True)


def test_what_a_human_would_be_told_is_an_error(tmp_path):
    answers = monitor_that_answers({"return": "Error: Snapshot 'x' does not exist\r\n"})
    with peer(tmp_path / "m", answers), pytest.raises(LabError, match=r"did not do `loadvm x`: .*does not exist"):
        qmp.human(tmp_path / "m", "loadvm x")


def test_a_monitor_that_says_nothing_or_is_not_there(tmp_path):
    with peer(tmp_path / "m", lambda stream: stream.readline()), pytest.raises(LabError, match=r"no answer on .*/m"):
        qmp.monitor(tmp_path / "m", "stop", patience=0.3)
    with pytest.raises(LabError, match="No such file"):
        qmp.monitor(tmp_path / "none", "stop")


def test_the_agents_answer_to_somebody_before_us_is_not_taken(tmp_path):
    def talk(stream):
        token = json.loads(stream.readline().lstrip(b"\xff"))["arguments"]["id"]
        say(stream, {"return": "stale"})
        say(stream, {"return": token}, prefix=b"\xff")
        stream.readline()
        say(stream, {"return": "ours"})

    with peer(tmp_path / "a", talk):
        assert qmp.agent(tmp_path / "a", "guest-info") == "ours"


@pytest.fixture
def shop(tmp_path):
    """The server of a folder, on loopback: path -> (status, text, where it redirects to)."""
    folder = tmp_path / "pypi" / "simple"
    (folder / "torch").mkdir(parents=True)
    (folder / "torch/index.html").write_text("<a href=../../files/x.whl>x</a>")
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    handler = packages.partial(packages.Handler, folders=[folder.resolve()])
    with packages.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def get(path: str):
            connection = http.client.HTTPConnection(*server.server_address)
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.headers.get("Location")

        yield folder, get
        server.shutdown()


def test_packages_are_at_their_own_path_on_the_network(shop):
    folder, get = shop
    assert get(f"{folder}/torch/")[:2] == (200, "<a href=../../files/x.whl>x</a>")
    assert get(f"{folder}/torch")[0::2] == (301, f"{folder}/torch/"), "relative links need the slash"
    assert "torch/" in get(f"{folder}/")[1]


def test_nothing_else_of_the_host_is(shop):
    folder, get = shop
    for path in (f"{folder}/link", f"{folder}/../../secret", f"{folder.parents[1]}/secret", "/", "/etc/passwd"):
        assert get(path)[0] == 404, path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["up", "--memory", "100"], "'100' is not a number from 512 to 65536"),
        (["up", "--disk", "big"], "'big' is not a number from 4 to 1024"),
        (["up", "--packages", "ufw, chrony"], "' chrony' is no name of a Debian package"),
        (["up", "--layer", "/etc/hostname"], "/etc/hostname is no tar file"),
        (["up", "--layer", "/does/not/exist"], "/does/not/exist is no tar file"),
        (["snapshot"], "required: NAME"),
        (["snapshot", "My Snap"], "'My Snap': use small letters"),
        (["up", "--kind", "pod"], "invalid choice: 'pod'"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, says, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
