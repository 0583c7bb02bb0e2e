"""A sum over the processes of this machine, as training makes one in each step."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from training.smoke.check import MB, Check, devices, seconds_of

SECONDS = 30  # for the processes to meet, and for a sum; both together take a second or two
STARTED_SECONDS = 120  # with the start of the processes: long on a machine that is busy with something else
FIXES = {
    "nccl": "NCCL_DEBUG=INFO shows where it hangs; on 40-series cards try NCCL_P2P_DISABLE=1",
    "gloo": "is the machine busy with something else? is the interface lo up?",
}


def all_reduce() -> Iterator[Check]:
    """A sum over one process per GPU (NCCL), or over two on the CPU (gloo)."""
    device = devices()[0]
    backend, processes = ("nccl", len(devices())) if device.type == "cuda" else ("gloo", 2)
    name = f"all-reduce {backend}"
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as directory:
        started = torch.multiprocessing.spawn(
            _all_reduce, (directory, backend, processes), nprocs=processes, join=False
        )
        problem = _problem_of(started)
        if problem:
            yield Check(verdict="fail", name=name, figure=problem, fix=FIXES[backend])
            return
        rate = json.loads(Path(directory, "rate").read_text())
    yield Check(verdict="ok", name=name, figure=f"{processes} processes, {rate:.3g} GB/s")


def _problem_of(started: torch.multiprocessing.ProcessContext) -> str:
    """Wait for the processes; empty when all have ended well. None of them is left."""
    deadline, ended = time.monotonic() + STARTED_SECONDS, False
    try:
        while not ended and time.monotonic() < deadline:
            ended = started.join(timeout=max(0, deadline - time.monotonic()))
        return "" if ended else f"none within {STARTED_SECONDS} s"
    except (ProcessRaisedException, ProcessExitedException) as error:
        return str(error).strip().splitlines()[-1]
    finally:
        for process in started.processes:
            process.kill()


def _all_reduce(rank: int, directory: str, backend: str, processes: int) -> None:
    """One process of it; rank 0 leaves the rate in GB/s."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all processes are on this machine
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    store, timeout = f"file://{directory}/store", datetime.timedelta(seconds=SECONDS)
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=processes, timeout=timeout)
    values = torch.full((4 * MB,), rank + 1.0, device=device)
    dist.all_reduce(values)
    if not bool((values == processes * (processes + 1) / 2).all()):
        raise ValueError("the sum over the processes is wrong")
    seconds = seconds_of(lambda: dist.all_reduce(values), device, repeats=5)
    if rank == 0:
        Path(directory, "rate").write_text(json.dumps(values.nbytes / seconds / 1e9))
    dist.destroy_process_group()
