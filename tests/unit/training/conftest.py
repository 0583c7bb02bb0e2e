"""A tiny run to start for real: a few hundred parameters, ragged pairs, one thread per process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
STORE = ROOT / "roles/rendezvous/files/store.py"
TINY = {
    "scratch_hidden": 16,
    "scratch_heads": 2,
    "scratch_layers": 2,
    "scratch_mlp": 32,
    "seq_len": 64,
    "global_batch": 16,
    "micro_batch": 2,
    "lr": 0.003,
    "sample_tokens": 8,
    "log_every": 1,
    "prompt_template": "{instruction}\n",
}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Training and held-out files whose answers have very different lengths."""
    directory = tmp_path_factory.mktemp("pairs")
    files = {}
    for name, count in (("train", 60), ("heldout", 9)):
        rows = [
            {"instruction": f"{name} {number}", "response": f"{number * 7} " * (1 + number * number % 11)}
            for number in range(count)
        ]
        files[name] = directory / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


@pytest.fixture(scope="session")
def tiny_config(pairs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file for the tiny run on those pairs."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    values = TINY | {"data_train": str(pairs["train"]), "data_heldout": str(pairs["heldout"])}
    file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
    return file


@pytest.fixture(autouse=True)
def nothing_works_on() -> Iterator[None]:
    """A courier or writer that a test leaves behind speaks up in the next one, when its directory goes away."""
    before = helpers()
    yield
    left = helpers() - before
    assert not left, f"close() is missing: {sorted(left)}"


def helpers() -> set[str]:
    """The command lines of this process's own couriers and checkpoint writers."""
    found = set()
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            for pid in children.read_text(encoding="utf-8").split():
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").replace("\0", " ").strip()
                    found |= {f"{pid}: {line}"} if "-m training.storage." in line else set()
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def store() -> Iterator[str]:
    """The address of a store like the head's."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, str(STORE), *address.split(":")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline().startswith("rendezvous store")
        yield address
        server.terminate()


def handler(address: str, rendezvous: str, **settings: int):
    """An agent's of torchrun, for two or three nodes."""
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

    wanted = RendezvousParameters("c10d", address, rendezvous, 2, 3, is_host="0", local_addr="127.0.0.1", **settings)
    backend, tcp_store = create_backend(wanted)
    return create_handler(tcp_store, backend, wanted)


class Started:
    """A run in a process group of its own; `output` is what it printed on both streams."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]):
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self, timeout: float = 120) -> int:
        return self.process.wait(timeout)

    def until(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        """Wait for `condition`; fails with the output when the run ends or the time passes first."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def worker_pids(self) -> dict[int, int]:
        """Rank -> process id of the newest start, from the lines that the workers print."""
        found = re.findall(r"rank (\d+)/\d+ node=\S+ device=\S+ backend=\S+ world_size=\d+ pid=(\d+)", self.output)
        return {int(rank): int(pid) for rank, pid in found}

    def kill(self) -> None:
        # torchrun puts its workers into sessions of their own: killing its group alone would leave them.
        pids = [self.process.pid, *_descendants(self.process.pid)] if self.process.poll() is None else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for pid in self.worker_pids().values():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if "training" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """The processes that `pid` has started, and theirs."""
    children = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                children.append(int(file.parent.name))
    return [*children, *(below for child in children for below in _descendants(child))]


@pytest.fixture
def start(tiny_config: Path, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """start(processes, job_dir, *overrides, ...) begins a run; what still runs at the end of the test is
    killed."""
    runs: list[Started] = []

    def begin(
        processes: int,
        job_dir: Path,
        *overrides: str,
        config: Path = tiny_config,
        max_restarts: int = 0,
        entry: tuple[str, ...] = ("-m", "training.finetune"),
        environment: dict[str, str] | None = None,
    ) -> Started:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launcher += [f"--max-restarts={max_restarts}", "--monitor-interval=0.1"]
        command = [sys.executable, *(launcher if processes > 1 else ()), *entry]
        command += ["--config", str(config), "--job-dir", str(job_dir), *overrides]
        run = Started(command, tmp_path / f"run-{len(runs)}.log", environment or {})
        runs.append(run)
        return run

    yield begin
    for run in runs:
        run.kill()


def state_of(job_dir: Path) -> dict[str, object]:
    """The run's state.json, {} before it is there."""
    file = job_dir / "state.json"
    return json.loads(file.read_text()) if file.exists() else {}


def metrics_of(job_dir: Path, kind: str) -> list[dict[str, object]]:
    """The rows of one type from metrics.jsonl."""
    rows = [json.loads(line) for line in (job_dir / "metrics/metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["type"] == kind]
