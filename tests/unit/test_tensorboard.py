"""TensorBoard as its unit starts it, on the records of a job that is being trained, seen by a real browser."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode

import pytest
from browser import CHROMIUM, Browser
from matplotlib.image import imread
from rendering import evaluated, rendered, shared

from training.reports import Recorder

STEPS = 40
HOSTS = {"node1": "10.0.0.1", "node2": "10.0.0.2"}
GROUPS = {"head": ["node1"]}


def unit(**options: object) -> dict[str, str]:
    """The settings of the unit's service; the last of each."""
    text = rendered("tensorboard", "minos-tensorboard.service.j2", **options).replace("\\\n", "")
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def test_it_is_seen_from_the_machine_itself_alone_unless_asked_for():
    settings = unit(tensorboard_members=list(HOSTS.values()))
    assert "--host 127.0.0.1 " in settings["ExecStart"]
    assert (settings["IPAddressDeny"], settings["IPAddressAllow"].split()) == ("any", ["localhost"])


def test_on_the_network_it_is_for_the_members_and_whom_the_owner_names():
    options = {"tensorboard_address": "10.0.0.1", "tensorboard_from": ["10.0.9.0/24"]}
    settings = unit(tensorboard_members=list(HOSTS.values()), **options)
    assert "--host 10.0.0.1 " in settings["ExecStart"]
    assert settings["IPAddressAllow"].split() == ["localhost", *HOSTS.values(), "10.0.9.0/24"]


def test_the_firewall_opens_its_port_on_the_head_only():
    for host, expected in (("node1", 1), ("node2", 0)):
        doors = shared("firewall_doors", host, HOSTS, GROUPS, tensorboard_from=["10.0.9.0/24"])
        assert len(doors) == expected
    assert doors == [] and shared("firewall_doors", "node1", HOSTS, GROUPS)[0]["from"] == []


def test_the_line_to_type_logs_in_as_ansible_does():
    login = {"ansible_user": "you", "ansible_port": 2222, "ansible_ssh_common_args": "-J door"}
    line = shared("tensorboard_ssh", "node1", HOSTS, GROUPS, ansible_host="head.example", **login)
    assert line == "ssh -J door -p 2222 you@head.example"
    tunnel = evaluated("tensorboard", "__tensorboard_tunnel", tensorboard_ssh=line)
    assert tunnel == f"{line} -N -L 6006:127.0.0.1:6006"
    assert shared("tensorboard_ssh", "node1", HOSTS, GROUPS, local_only=True) == ""


class Board:
    """A running TensorBoard and the folder of jobs that it reads."""

    def __init__(self, process: subprocess.Popen, jobs: Path, url: str):
        self.process, self.jobs, self.url = process, jobs, url

    def values(self, job: str, tag: str) -> list[float]:
        """What it shows of one curve; nothing as long as it does not know it."""
        query = urlencode({"run": f"{job}/tensorboard", "tag": tag})
        try:
            with urllib.request.urlopen(f"{self.url}/data/plugin/scalars/scalars?{query}", timeout=10) as answer:
                return [value for _, _, value in json.load(answer)]
        except (URLError, ConnectionError):
            return []

    def until(self, job: str, tag: str, count: int) -> list[float]:
        for _ in range(120):
            assert self.process.poll() is None, "TensorBoard has ended"
            if len(found := self.values(job, tag)) >= count:
                return found
            time.sleep(0.25)
        raise AssertionError(f"{len(found)} of {count} values of {tag} after 30 s")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """Started by the unit's own command, but for its port and its patience."""
    folder = tmp_path_factory.mktemp("tensorboard")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {"tensorboard_jobs": folder / "jobs", "tensorboard_port": port, "tensorboard_python": sys.executable}
    command = unit(**options)["ExecStart"].replace("--reload_interval 15", "--reload_interval 1")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            shlex.split(command), stdout=log, stderr=log, env=os.environ | {"TMPDIR": str(folder)}
        )
    yield Board(process, folder / "jobs", f"http://127.0.0.1:{port}")
    process.terminate()
    process.wait(20)


def train(job: Path, last: int) -> None:
    """What a training run writes down up to step `last`."""
    recorder = Recorder(job, STEPS, active=True, resumed_at=0)
    for step in range(1, last + 1):
        nodes = {"node1": {"seconds": 0.1, "cpu_utilisation": 0.9}}
        figures = {"loss": 1 + 5 / step, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 9000.0}
        recorder.step(step=step, epoch=1, seconds=0.1, nodes=nodes, **figures)
    recorder.close()


def test_a_file_that_is_being_written_is_read_as_far_as_it_is_there(board):
    """It ends within a record, as it does whenever the reader is quicker than the writer or a disk is full."""
    train(board.jobs / "half", STEPS)
    (events,) = (board.jobs / "half/tensorboard").glob("events.out.*")
    whole = events.read_bytes()
    events.write_bytes(whole[: len(whole) * 2 // 3])
    some = board.until("half", "loss/train", STEPS // 3)
    assert len(some) < STEPS
    with events.open("ab") as stream:
        stream.write(whole[len(whole) * 2 // 3 :])
    assert board.until("half", "loss/train", STEPS)[: len(some)] == some
    assert len(board.values("half", "node/node1/cpu_utilisation")) == STEPS


def curves_in(picture: Path) -> int:
    """How many points of the cards are in the colour of a curve; a hundred are a dot in the list below it."""
    cards = imread(picture)[150:, 290:, :3]
    return int((cards.max(axis=2) - cards.min(axis=2) > 0.2).sum())


@pytest.mark.skipif(not CHROMIUM, reason="there is no chromium here; make test-unit installs it")
def test_a_browser_shows_the_curves_of_all_jobs(board, tmp_path):
    for job in ("first", "second"):
        train(board.jobs / job, STEPS)
        board.until(job, "loss/train", STEPS)
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"{board.url}/?tagFilter=loss#timeseries")
        browser.until("document.title == 'Minos'")
        shown = ["first/tensorboard", "second/tensorboard", "1.125"]  # the last loss
        browser.until(f"{json.dumps(shown)}.every(text => document.body.innerText.includes(text))")
        # The settings beside the cards have an orange of their own.
        browser.value("document.querySelector('[aria-label=\"Close side pane\"]').click()")
        picture, patience = tmp_path / "board.png", time.monotonic() + 20
        while True:
            browser.picture(picture)
            if (drawn := curves_in(picture)) > 600:
                break
            assert time.monotonic() < patience, f"the card is there, and {drawn} points of its curves"
        assert browser.problems == []
