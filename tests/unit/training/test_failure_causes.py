"""The table of causes against what programs really say."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from training.failures import TABLE, Failure, cause_of

# What cannot be provoked without a GPU, an NFS server or a broken machine: quoted from the programs, see causes.py.
QUOTED = {
    "gpu-memory": [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.22 GiB. GPU 0 has a total capacity",
        "RuntimeError: CUDA error: out of memory",
    ],
    "killed-for-memory": [
        "minos-train@demo.service: A process of this unit has been killed by the OOM killer.",
        "Out of memory: Killed process 4711 (python) total-vm:9000000kB, anon-rss:8000000kB, file-rss:0kB",
    ],
    "shared-memory": [
        "RuntimeError: DataLoader worker (pid 812) is killed by signal: Bus error. It is possible that dataloader's "
        "workers are out of shared memory. Please try to raise your shared memory limit.",
    ],
    "share": ["OSError: [Errno 116] Stale file handle", "nfs: server 192.168.1.5 not responding, still trying"],
    "gpu-broken": [
        "NVRM: Xid (PCI:0000:01:00): 79, pid=1234, name=python, GPU has fallen off the bus.",
        "torch.AcceleratorError: CUDA error: unknown error",
        "RuntimeError: CUDA error: the launch timed out and was terminated",
    ],
    "gpu-missing": ["RuntimeError: node3: the driver sees 1 of the 2 GPUs that the job was started with"],
    "collectives": [
        "RuntimeError: Detected mismatch between collectives on ranks. Rank 0 is running collective: ALLREDUCE",
        "RuntimeError: Mismatch between collective operation types across ranks.",
    ],
    "gpu-index": ["torch.AcceleratorError: CUDA error: device-side assert triggered"],
    "driver": [
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12080). Please update",
        "RuntimeError: No CUDA GPUs are available",
        "NVML: Driver/library version mismatch",
    ],
    "gpu-architecture": ["CUDA error: no kernel image is available for execution on the device"],
    "nccl-use": [
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
        "torch.distributed.DistBackendError: NCCL error in: /pytorch/NCCLUtils.cpp:93, invalid usage (run with "
        "NCCL_DEBUG=WARN for details), NCCL version 2.28.9",
    ],
    "nccl": [
        "torch.distributed.DistBackendError: NCCL error in: ../ProcessGroupNCCL.cpp:3690, unhandled system error",
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.",
    ],
    "timeout": [
        "[rank0]:[E1218 20:27:21.426 ProcessGroupNCCL.cpp:629] [Rank 0] Watchdog caught collective operation timeout: "
        "WorkNCCL(SeqNum=1, OpType=BROADCAST, Timeout(ms)=600000) ran for 600081 milliseconds before timing out.",
    ],
    "connection-lost": [
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
        "[/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:6042: Connection reset by peer",
    ],
    "network": [
        "OSError: [Errno 113] No route to host",
        "The client socket has failed to connect to [10.0.0.9]:29500 (errno: 113 - No route to host).",
    ],
    "stopped-with-others": [
        "torch.distributed.elastic.rendezvous.api.RendezvousClosedError",
        "rank 2 (node3): another rank is gone or late, this one goes too",
        "killed by signal 15 (SIGTERM)",
    ],
    "differ": ["node2 does not run the same as node1 (rank 0): package tqdm; make them equal"],
    "not-finite": ["the loss is not finite at step 7 on rank 1 (node2) in rows [3, 4] of the packed data; lower lr"],
    "read-only": ["OSError: [Errno 30] Read-only file system: '/srv/minos/jobs/demo/x'"],
    "disk-fault": ["OSError: [Errno 5] Input/output error"],
    "processor": ["killed by signal 4 (SIGILL)"],
    "crash": ["killed by signal 11 (SIGSEGV)"],
    "killed": ["killed by signal 9 (SIGKILL)"],
    "gave-up": [
        "the unit minos-train@demo.service gave up",
        "the workers were started 12 times and came no further than step 0; what ended them stands in the logs",
    ],
}
QUOTES = [(name, text) for name, texts in QUOTED.items() for text in texts]
TORCH = "from datetime import timedelta as t; import torch; from torch.distributed import TCPStore as Store\n"
SMALL = "mount -t tmpfs -o size=64k tmpfs {where} && cd {where} && exec {python} -c '{code}'"
# What can be: a program, and whether it needs a file system of its own (and so root).
PROVOKED = {
    "refused": (TORCH + "Store('127.0.0.1', 1, is_master=False, timeout=t(seconds=1))", ""),
    "timeout": (TORCH + "Store('127.0.0.1', 0, 3, True, timeout=t(seconds=1))", ""),
    "address-in-use": (
        "import socket\na = socket.create_server(('127.0.0.1', 0))\nsocket.create_server(a.getsockname())",
        "",
    ),
    "host-memory": (TORCH + "torch.empty(1 << 50)", ""),
    "module": ("import a_package_that_nobody_has", ""),
    "file": ("open('/no/such/file')", ""),
    "permission": ("import os\nos.setuid(65534) if os.getuid() == 0 else None\nopen('/etc/shadow')", ""),
    "interface": (
        "import os; os.environ['GLOO_SOCKET_IFNAME'] = 'lan99'; import torch.distributed as d\n"
        "d.init_process_group('gloo', store=d.HashStore(), rank=0, world_size=1)",
        "",
    ),
    "disk-full": ('open("file", "wb").write(bytes(1 << 20))', "/mnt"),
    "shared-memory": ("import torch; torch.ones(1 << 20).share_memory_()", "/dev/shm"),
}


@pytest.mark.parametrize(("name", "text"), QUOTES, ids=[name for name, _ in QUOTES])
def test_what_is_quoted_has_its_cause(name, text):
    assert cause_of(["step 5/90 loss 2.1", text]).name == name


@pytest.mark.parametrize("name", PROVOKED)
def test_what_really_happens_has_its_cause(name):
    code, full = PROVOKED[name]
    command = [sys.executable, "-c", code]
    if full:
        command = ["unshare", "--mount", "sh", "-c", SMALL.format(where=full, python=sys.executable, code=code)]
        if subprocess.run([*command[:2], "true"], capture_output=True).returncode:
            pytest.skip("a file system of one's own needs root")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 1, done.stderr
    assert cause_of(done.stderr.splitlines()[-1:]).name == name, done.stderr


def test_every_row_is_tried():
    rows = [row.name for row in TABLE]
    assert len(rows) == len(set(rows))
    assert {*QUOTED, *PROVOKED, "store"} == set(rows)


def test_an_ordinary_line_has_no_cause():
    assert cause_of(["step 5/90 epoch 1 loss 2.1 lr 3e-3 tokens/s 15000 eta 0:00:11", "saved step-00000010"]) is None


@pytest.mark.parametrize(
    "mistake",
    [
        "AttributeError: 'NoneType' object has no attribute 'shape'",
        "TypeError: forward() got an unexpected keyword argument 'labels'",
    ],
)
def test_a_mistake_in_a_script_is_no_missing_package(mistake):
    assert cause_of([mistake]) is None
    assert cause_of(["AttributeError: module 'torch' has no attribute 'compile'"]).name == "module"


def test_what_nccl_says_in_the_lines_behind_its_error_counts():
    said = "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:93, unhandled system error, NCCL 2.28"
    behind = [
        "ncclSystemError: System call failed.",
        "Last error:",
        "Error while creating shared memory segment /dev/shm/nccl",
    ]
    assert Failure(node="a", what=said, at=0.0, lines=(said, *behind)).cause.name == "shared-memory"
    assert Failure(node="a", what=said, at=0.0, lines=(said,)).cause.name == "nccl"
