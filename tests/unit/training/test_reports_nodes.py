"""What the machines do: GPU figures, the communication share, profiles. No GPU is at hand here: its driver library is
played by a stand-in with the same names.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from training.distributed import Place
from training.reports.communication import Communication
from training.reports.gpu import DeviceProbe
from training.reports.nodes import OVER_RANKS, NodeProbe, by_node
from training.reports.profile import Profiler

UUID = "5f1a2b3c-0000-1111-2222-333344445555"
NAN = math.nan


def until(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class NVMLError(Exception):
    """As in pynvml."""


class Driver(SimpleNamespace):
    """A stand-in for pynvml with one card, which has been asked `asked` times."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self) -> None:
        super().__init__(asked=0, initialised=False, lost=False)

    def nvmlInit(self) -> None:
        self.initialised = True

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if not self.initialised or uuid != f"GPU-{UUID}":
            raise NVMLError("not found")
        return "card"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        if self.lost:
            raise NVMLError("GPU is lost")
        self.asked += 1
        return SimpleNamespace(gpu=[40, 80][self.asked % 2])

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        if self.lost:
            raise NVMLError("GPU is lost")
        return SimpleNamespace(used=[2e9, 11e9][self.asked % 2])

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        raise NVMLError("not supported")  # as by many laptop cards

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        if self.lost:
            raise NVMLError("GPU is lost")
        return 64


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    stand_in = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", stand_in)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=UUID))
    return stand_in


def test_a_gpu_is_sampled_beside_the_training(driver):
    probe = DeviceProbe(torch.device("cuda", 0), every=0.01)
    until(lambda: driver.asked >= 6)
    figures = probe.read()
    assert set(figures) == {"gpu_utilisation", "gpu_memory_gb", "gpu_temperature_c"}
    assert 0.45 < figures["gpu_utilisation"] < 0.75  # the mean
    assert (figures["gpu_memory_gb"], figures["gpu_temperature_c"]) == (11.0, 64.0)  # the highest

    driver.lost = True
    asked = driver.asked
    until(lambda: probe.read() == probe.read() != {})
    assert driver.asked <= asked + 1
    probe.close()


@pytest.mark.parametrize("missing", ["package", "driver", "card"])
def test_without_nvml_there_are_no_figures_and_no_errors(missing, driver, monkeypatch):
    if missing == "package":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    elif missing == "driver":
        monkeypatch.setattr(driver, "nvmlInit", lambda: driver.nvmlDeviceGetPowerUsage("card"))
    else:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="other"))
    assert DeviceProbe(torch.device("cuda", 0), every=0.01).read() == {}


def test_the_real_package_has_every_name_that_is_used():
    pynvml = pytest.importorskip("pynvml")
    names = {name for name in vars(Driver) if name.startswith(("nvml", "NVML"))}
    assert len(names) == 8 and all(hasattr(pynvml, name) for name in names)


def test_a_cpu_shows_how_much_of_its_threads_this_process_used():
    probe = DeviceProbe(torch.device("cpu"))
    threads = torch.get_num_threads()
    began = time.process_time()
    while time.process_time() < began + 0.2:
        pass
    busy = probe.read()["cpu_utilisation"] * threads
    time.sleep(0.3)
    idle = probe.read()["cpu_utilisation"] * threads
    assert 0 <= 3 * idle < busy < 1.5


def test_ranks_of_one_machine_become_one_row():
    def row(**figures: float) -> list[float]:
        return [figures.get(name, NAN) for name in OVER_RANKS]

    first = row(seconds=0.5, gpu_utilisation=0.9, gpu_memory_gb=10.0, gpu_power_w=100.0, gpu_temperature_c=60.0)
    second = row(seconds=0.6, gpu_utilisation=0.7, gpu_memory_gb=11.0, gpu_power_w=150.0, gpu_temperature_c=70.0)
    assert by_node(("a", "b", "a"), [first, row(seconds=0.5, cpu_utilisation=0.4), second]) == {
        "a": {
            "seconds": 0.6,
            "gpu_utilisation": pytest.approx(0.8),
            "gpu_memory_gb": 21.0,
            "gpu_power_w": 250.0,
            "gpu_temperature_c": 70.0,
        },
        "b": {"seconds": 0.5, "cpu_utilisation": 0.4},
    }


NODES = ("slow", "fast", "fast")  # of ranks 0, 1, 2
LATE = 0.2
STEPS = 8


def place_of(rank: int, world_size: int) -> Place:
    return Place(
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        backend="gloo",
        nodes=NODES[:world_size],
        control=dist.group.WORLD,
    )


def small_ddp() -> DistributedDataParallel:
    torch.manual_seed(1)
    model = torch.nn.Sequential(*(torch.nn.Linear(300, 300) for _ in range(4)))
    return DistributedDataParallel(model, bucket_cap_mb=0.5, gradient_as_bucket_view=True)


def steps(ddp: DistributedDataParallel, rank: int, late: float) -> list[torch.Tensor]:
    """Gradients of all steps; rank 0 comes `late` seconds too late to each exchange."""
    gradients = []
    for step in range(STEPS):
        torch.manual_seed(100 * step + rank)
        time.sleep(late if rank == 0 else 0)
        with ddp.no_sync():
            ddp(torch.randn(8, 300)).square().sum().backward()
        ddp(torch.randn(8, 300)).square().sum().backward()
        gradients += [parameter.grad.clone() for parameter in ddp.parameters()]
        ddp.zero_grad()
    return gradients


def compare(rank: int, directory: str) -> None:
    """The same steps without and with the measurement, on one of three ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=3)
    plain = steps(small_ddp(), rank, 0)
    ddp = small_ddp()
    probe = NodeProbe(place_of(rank, 3), ddp)
    began = time.perf_counter()
    unknown = probe.of_all_nodes(1.0)
    measured = steps(ddp, rank, LATE)
    seconds = (time.perf_counter() - began) / STEPS
    figures = {
        "equal": all(map(torch.equal, plain, measured)) and len(plain) == 8 * STEPS,
        "buckets": ddp._get_ddp_logging_data()["num_buckets_reduced"],
        "unknown": unknown,
        "nodes": probe.of_all_nodes(seconds),
        "seconds": seconds,
    }
    Path(directory, f"{rank}.json").write_text(json.dumps(figures))
    dist.destroy_process_group()


@pytest.mark.timeout(120)
def test_the_communication_share_is_the_waiting_and_changes_no_bit(tmp_path):
    torch.multiprocessing.spawn(compare, (str(tmp_path),), nprocs=3)
    figures = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert all(rank["equal"] for rank in figures)
    assert figures[0]["buckets"] > 1
    assert "communication_share" not in figures[0]["unknown"]["slow"]
    assert figures[0]["nodes"] == figures[1]["nodes"] == figures[2]["nodes"]
    share = {node: row["communication_share"] for node, row in figures[0]["nodes"].items()}
    late = LATE / figures[0]["seconds"]
    # The others wait for the slow one, who waits for nobody.
    assert 0.7 * late < share["fast"] < 1
    assert share["slow"] < 0.5 * share["fast"]
    assert 0 < figures[0]["nodes"]["fast"]["cpu_utilisation"] < 1.2


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield place_of(0, 1)
    dist.destroy_process_group()


def test_a_sampled_share_is_the_mean_of_the_steps_that_were_timed(alone, monkeypatch):
    ddp = DistributedDataParallel(torch.nn.Linear(4, 4))
    communication = Communication(ddp, every=4)
    assert communication.share(1.0) is None
    exchange = {"iteration": 0}
    monkeypatch.setattr(ddp, "_get_ddp_logging_data", lambda: exchange)

    def at(iteration: int, mean_of_timed: float) -> float:
        keys = ("avg_backward_comm_time", "avg_backward_compute_comm_overlap_time")
        exchange.update(iteration=iteration, **dict(zip(keys, (int((mean_of_timed + 1) * 1e9), int(1e9)), strict=True)))
        return communication.share(2.0)

    assert at(10, 0.1) == pytest.approx(0.05)  # steps 1 to 10
    assert at(11, 0.1) == pytest.approx(0.05)  # none since
    assert at(16, (10 * 0.1 + 2 * 0.7) / 12) == pytest.approx(0.35)  # 12 and 16


def test_ddp_times_the_steps_that_we_think_it_times(alone):
    ddp = DistributedDataParallel(torch.nn.Linear(4, 4))
    Communication(ddp, every=4)
    timed = []
    for _ in range(22):
        ddp(torch.ones(1, 4)).sum().backward()
        data = ddp._get_ddp_logging_data()
        timed.append((data.get("backward_comm_time_start"), data["iteration"]))
    changes = [iteration for (start, iteration), (before, _) in zip(timed[1:], timed, strict=False) if start != before]
    assert changes == [*range(1, 11), 12, 16, 20]


def test_a_profile_holds_the_asked_steps_and_no_more(alone, tmp_path, capsys):
    profiler = Profiler(tmp_path, 3, alone)
    for step in range(20):
        with torch.profiler.record_function(f"step-{step + 1}"):
            torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.step()
    profiler.close()
    assert profiler.file == tmp_path / "profile/slow-rank0.json.gz"
    trace = gzip.decompress(profiler.file.read_bytes()).decode()
    seen = {event["name"] for event in json.loads(trace)["traceEvents"] if event.get("cat") == "user_annotation"}
    assert {name for name in seen if name.startswith("step-")} == {"step-11", "step-12", "step-13"}
    output = capsys.readouterr().out
    assert "profile of 3 steps: " in output and "aten::mm" in output


def test_no_profile_unless_asked_and_none_that_stops_the_run(alone, tmp_path, capsys):
    for directory, asked in ((tmp_path, 0), (Path(os.devnull), 1)):
        profiler = Profiler(directory, asked, alone)
        for _ in range(13):
            profiler.step()
        profiler.close()
    assert list(tmp_path.iterdir()) == []
    assert "cannot be written" in capsys.readouterr().out
