"""The table of causes: what programs say when they fail, what it most likely means, what to do.

    cause_of(lines)     the first row of TABLE that fits, or None

Rows are tried in their order, the telling ones first. Each pattern stands beside the place that says it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cause:
    """One row. `follows`: it only says that another process is gone or late, and that one failed first. `vague`: it
    says how the process ended, not why; the lines around may say more.
    """

    name: str
    what: str
    advice: str
    patterns: tuple[str, ...]
    follows: bool = False
    vague: bool = False

    def fits(self, text: str) -> bool:
        return any(re.search(pattern, text) for pattern in self.patterns)


TABLE = (
    Cause(
        name="gpu-memory",
        what="the memory of the GPU is full",
        advice="a smaller micro_batch (the global batch stays what it is) or seq_len, or tuning=lora or qlora; "
        "nvidia-smi on that node shows what else uses the card",
        patterns=(
            r"CUDA out of memory\.",  # torch, c10/cuda/CUDACachingAllocator.cpp
            r"CUDA error: out of memory",  # cudaErrorMemoryAllocation, in the words of the CUDA runtime
            r"Cuda failure \d+ 'out of memory'",  # the same, as NCCL says it
            r"CUBLAS_STATUS_ALLOC_FAILED",  # cuBLAS, for its workspace
        ),
    ),
    Cause(
        name="killed-for-memory",
        what="the kernel killed it, because memory ran out (the machine's, or that of a limit on the job)",
        advice="a smaller micro_batch, seq_len or model; fewer processes on that node (nproc_per_node); "
        "free -h and systemd-cgtop there show what else uses its memory",
        patterns=(
            r"oom-kill:",  # kernel, mm/oom_kill.c, dump_oom_summary
            r"[Oo]ut of memory: Killed process",  # the same, __oom_kill_process; also "Memory cgroup out of memory"
            r"killed by the OOM killer",  # systemd, "A process of this unit has been ..."
            r"Failed with result 'oom-kill'",  # systemd, of the whole unit
        ),
    ),
    Cause(
        name="shared-memory",
        what="shared memory (/dev/shm) is full",
        advice="fewer or no DataLoader workers, or a larger /dev/shm on that node: mount -o remount,size=8G /dev/shm",
        patterns=(
            r"out of shared memory",  # torch, DataLoader.cpp, beside "is killed by signal: Bus error"
            r"shared memory\(shm\)|shared memory segment",  # torch, MapAllocator.cpp; NCCL, misc/shmutils.cc
            r"killed by signal 7|Signal 7 \(SIGBUS\)|Bus error",  # what writing to a full tmpfs ends in, tmpfs(5)
        ),
    ),
    Cause(
        name="host-memory",
        what="that machine's memory is full",
        advice="a smaller micro_batch or seq_len, fewer processes there (nproc_per_node); free -h shows what uses it",
        patterns=(
            r"DefaultCPUAllocator: (can't|not enough) (allocate )?memory",  # torch, c10/core/impl/alloc_cpu.cpp
            r"\bMemoryError\b",  # Python
            r"std::bad_alloc",  # C++
            r"Cannot allocate memory",  # ENOMEM
        ),
    ),
    Cause(
        name="disk-full",
        what="a disk is full",
        advice="df -h on that node, for the path that the lines name; old checkpoints are in the job's folder "
        "(keep=2 keeps two)",
        patterns=(
            r"No space left on device",  # ENOSPC
            r"[Dd]isk quota exceeded",  # EDQUOT
            r"PytorchStreamWriter failed writing|inline_container\.cc:\d+\] \. unexpected pos",  # torch.save
        ),
    ),
    Cause(
        name="share",
        what="the shared directory does not answer, or is another one than before",
        advice="on that node: findmnt and ls of the shared directory; on its server: systemctl status nfs-server. "
        "A 'stale' mount goes with umount -l, and comes back with the next access",
        patterns=(
            r"Stale (NFS )?file handle",  # ESTALE; with "NFS" before glibc 2.19
            r"nfs: server \S+ not responding",  # kernel, net/sunrpc/clnt.c
            r"Transport endpoint is not connected",  # ENOTCONN, a FUSE share whose program is gone
            r"Remote I/O error",  # EREMOTEIO, what NFS calls an answer that it does not understand
        ),
    ),
    Cause(
        name="gpu-broken",
        what="the GPU or its driver reported a fault",
        advice="dmesg | grep Xid on that node (NVIDIA's 'Xid errors' explains the number); restart the node; where it "
        "comes again: power supply, heat, the card's seat, a lower nvidia_power_limit",
        patterns=(
            r"NVRM: Xid",  # the driver, in the kernel's log
            r"GPU is lost|GPU has fallen off the bus",  # NVML; the driver
            r"uncorrectable ECC error",  # cudaErrorECCUncorrectable
            # CUDA runtime; the second is also what a card that has gone answers
            r"CUDA error: (unspecified launch failure|unknown error|an illegal instruction|misaligned address)",
            r"CUDA error: the launch timed out",  # cudaErrorLaunchTimeout
        ),
    ),
    Cause(
        name="gpu-missing",
        what="a card that was there when the job was started is not there any more",
        advice="nvidia-smi and dmesg | grep NVRM on that node; restart it, or see to the card's seat and power. "
        "Without the card: stop the job, then train.yml on the other nodes, or with a smaller nproc_per_node",
        patterns=(r"sees \d+ of the \d+ GPUs that the job",),  # training/unit.py, distributed.py
    ),
    Cause(
        name="gpu-index",
        what="the program read or wrote outside of an array on the GPU, as with a token that the model does not have",
        advice="tokenizer and model must belong together, labels must be below the number of classes; the same step on "
        "a CPU (backend=gloo) names the line",
        patterns=(
            r"device-side assert triggered",  # cudaErrorAssert
            r"an illegal memory access was encountered",  # cudaErrorIllegalAddress
        ),
    ),
    Cause(
        name="driver",
        what="the NVIDIA driver is missing, too old for this torch, or not the one that is loaded",
        advice="ansible-playbook site.yml --tags nvidia puts the right one there, -e nvidia_upgrade=true a newer one; "
        "after an update by hand: restart the node",
        patterns=(
            r"NVIDIA driver on your system is too old",  # torch, c10/cuda/CUDAFunctions.cpp
            r"CUDA driver version is insufficient",  # cudaErrorInsufficientDriver
            r"Found no NVIDIA driver|No CUDA GPUs are available|no CUDA-capable device",  # torch; cudaErrorNoDevice
            r"Driver/library version mismatch",  # NVML
            r"nccl needs CUDA and torch sees none",  # training/distributed.py
        ),
    ),
    Cause(
        name="gpu-architecture",
        what="this torch was not built for that GPU",
        advice="another card, or a torch that knows it (training/requirements-cuda.txt); the message names both",
        patterns=(r"no kernel image is available",),  # cudaErrorNoKernelImageForDevice
    ),
    Cause(
        name="differ",
        what="the nodes do not run the same packages, driver, code or config",
        advice="ansible-playbook site.yml for packages and driver, the same train.yml line again for code and config; "
        "playbooks/parity.yml shows what differs",
        patterns=(
            r"do(es)? not run the same as",  # training/parity.py
        ),
    ),
    Cause(
        name="collectives",
        what="the ranks did not call the same operation at the same time: one took another way through the program",
        advice="what depends on the rank (an if, an early end of its data, a saved file that only one sees) must not "
        "hold a collective operation; the message names the ranks and what each called",
        patterns=(r"[Mm]ismatch between collective",),  # torch, ProcessGroupWrapper.cpp
    ),
    Cause(
        name="not-finite",
        what="the loss or a gradient became infinite or not a number",
        advice="a lower lr, more warmup_steps, clip_norm=1; then the rows of the data that the message names. "
        "It goes on from the last checkpoint, which is from before",
        patterns=(
            r"is not finite at step",  # training/lifecycle.py
            r"Function '\w+' returned nan values",  # torch.autograd.set_detect_anomaly
            r"(?i)\bloss is (nan|inf)",  # common in own scripts
        ),
    ),
    Cause(
        name="module",
        what="a Python package or library is not there, or another version than the program expects",
        advice="for an own script: -e requirements=FILE with that package; for Minos itself: site.yml --tags "
        "python_env, which mends the environment",
        patterns=(
            r"ModuleNotFoundError: |ImportError: ",  # Python
            r"error while loading shared libraries|cannot open shared object file",  # glibc, ld.so
            r"\bmodule '[\w.]+' has no attribute '",  # Python, of another version's names
        ),
    ),
    Cause(
        name="address-in-use",
        what="the port is taken by another process",
        advice="ss -ltnp on that node shows by whom; end it, or choose another port (rendezvous_port in the "
        "inventory, then site.yml)",
        patterns=(r"EADDRINUSE|[Aa]ddress already in use",),  # libuv's name and the system's, errno(3)
    ),
    Cause(
        name="interface",
        what="the network interface that the job should use is not there, or has no address",
        advice="ip -br address on that node; ansible-playbook train.yml finds the interface anew, lan_interface in the "
        "inventory names it",
        patterns=(
            r"Unable to find (address|interface) for: ",  # gloo, transport/tcp/device.cc
            r"Bootstrap : no socket interface found|No interface found",  # NCCL, bootstrap.cc
            r"Cannot assign requested address",  # EADDRNOTAVAIL
        ),
    ),
    Cause(
        name="store",
        what="the rendezvous store on the head does not answer",
        advice="on the head: systemctl status minos-store; from that node: ping the head. site.yml mends unit and "
        "firewall",
        patterns=(r"RendezvousConnectionError|connection to the C10d store has failed",),  # torch, rendezvous/
    ),
    Cause(
        name="nccl-use",
        what="NCCL was used in a way that it refuses, most often two processes on one GPU",
        advice="nproc_per_node must not be above the number of GPUs there; the script must pick its card by LOCAL_RANK",
        patterns=(
            r"Duplicate GPU detected",  # NCCL, init.cc
            r"ncclInvalid(Usage|Argument)|NCCL error in: .*, invalid (usage|argument)",  # torch, NCCLUtils.cpp
        ),
    ),
    Cause(
        name="read-only",
        what="a file system can only be read: mounted so, or set so by the kernel after a disk fault",
        advice="findmnt for the path and dmesg on that node. A job may write to its own folders only",
        patterns=(r"Read-only file system",),  # EROFS
    ),
    Cause(
        name="permission",
        what="the job's account may not do that",
        advice="the job runs as the service user (minos) and may write to its own folders only: give it the file with "
        "chown or chmod, or write into the job's folder. ansible-playbook site.yml mends the share's owner",
        patterns=(r"Permission denied|Operation not permitted",),  # EACCES, EPERM
    ),
    Cause(
        name="file",
        what="a file is not there, on that node",
        advice="write a path that exists on every node, such as one in the shared directory; of what is on your "
        "machine alone only data_train and data_heldout are copied",
        patterns=(r"No such file or directory",),  # ENOENT
    ),
    Cause(
        name="disk-fault",
        what="a disk or the share returned an error",
        advice="dmesg on that node says which; a disk with such errors should be replaced",
        patterns=(r"Input/output error",),  # EIO
    ),
    Cause(
        name="processor",
        what="the program uses instructions that this processor does not have",
        advice="torch needs AVX2; a virtual machine may hide it (QEMU: -cpu host)",
        patterns=(r"\(SIGILL\)|Illegal instruction",),  # torchrun; strsignal(3)
    ),
    Cause(
        name="crash",
        what="the program crashed outside of Python, in a library or its driver",
        advice="the same line again; if it comes again, -e nccl_debug=true, and the libraries that the script brings",
        patterns=(r"\(SIGSEGV\)|Segmentation fault|\(SIGFPE\)",),  # torchrun; strsignal(3)
        vague=True,
    ),
    Cause(
        name="killed",
        what="something killed it (kill -9); for lack of memory the kernel's log on that node would say so",
        advice="journalctl -k on that node; a person, or a limit of the system's",
        patterns=(r"\(SIGKILL\)|status=9/KILL",),  # torchrun; systemd
        vague=True,
    ),
    # --- what those say who only lost a peer ---------------------------------------------------------------------
    Cause(
        name="stopped-with-others",
        what="it was stopped because another process had failed",
        advice="look at the node that says nothing of this kind; playbooks/logs.yml shows all of them in one order",
        patterns=(
            r"\(SIGTERM\)",  # torchrun, to the processes beside the one that failed
            r"another rank is gone|the job has failed already",  # training/lifecycle.py, script.py, rendezvous.py
            r"RendezvousClosedError|RendezvousGracefulExitError",  # torch, when some agent has closed the rendezvous
            r"SignalException",  # torch, the agent on SIGTERM
            r"^ended with exit status 75$",  # failures/journal.py: a worker that left to be started again
        ),
        follows=True,
    ),
    Cause(
        name="timeout",
        what="it waited in vain for another rank: gone without a word, hanging, or much slower",
        advice="is a node off, or its cable out? playbooks/status.yml shows who is there. Where all are: the one that "
        "is silent in playbooks/logs.yml; where data or models load for longer than half an hour timeout_start=7200",
        patterns=(
            r"Watchdog caught collective operation timeout",  # torch, ProcessGroupNCCL.cpp
            r"Timed out waiting \d+ms for (send|recv) operation",  # gloo, transport/tcp/unbound_buffer.cc
            r"wait timeout after \d+ms, keys: ",  # torch, TCPStore
            r"Timed out after \d+ seconds waiting for clients",  # torch, TCPStore
            r"Socket Timeout|RendezvousTimeoutError",  # torch, TCPStore of before 2.5; rendezvous/
            r"(?i)timed? ?out waiting|has not come",  # torch and own scripts
        ),
        follows=True,
    ),
    Cause(
        name="network",
        what="there is no way to another node",
        advice="ip route get ADDRESS on that node; cable, switch, address",
        patterns=(r"No route to host|Network is unreachable|Network is down",),  # errno(3)
        follows=True,
    ),
    Cause(
        name="refused",
        what="nobody listens where it wanted to connect: the process there is gone, or a firewall refuses",
        advice="what is wrong with the node of that address? make nodes INVENTORY=inventory/hosts.yml checks the "
        "firewalls",
        patterns=(
            r"Connection refused|ECONNREFUSED",  # errno(3)
            r"client socket has (timed out|failed)",  # torch, socket.cpp
        ),
        follows=True,
    ),
    Cause(
        name="connection-lost",
        what="the connection to another rank broke: that rank, its node or its network was gone first",
        advice="look for an earlier failure in playbooks/logs.yml; where there is none, a node lost power or cable",
        patterns=(
            r"[Cc]onnection (closed|reset) by (remote )?peer",  # gloo, pair.cc; NCCL, socket.cc; ECONNRESET
            r"Broken pipe|Software caused connection abort|[Cc]onnection timed out",  # EPIPE, ECONNABORTED, ETIMEDOUT
            r"gloo/transport|remote process exit",  # gloo's own errors; torch, NCCLUtils.cpp
            r"ncclRemoteError",  # torch, NCCLUtils.cpp
            r"recvValue failed|recvBytes|failed to recv, got 0 bytes",  # torch, TCPStore
        ),
        follows=True,
    ),
    Cause(
        name="nccl",
        what="NCCL, which connects the GPUs, failed",
        advice="once with -e nccl_debug=true, which lets it say where and uses the plainest ways; the lines with "
        "'NCCL WARN' name the interface or the card",
        patterns=(r"NCCL error|nccl(System|Internal|UnhandledCuda)Error|NCCL WARN",),  # torch, NCCLUtils.cpp; NCCL
        follows=True,
        vague=True,  # what it is stands in the lines after
    ),
    Cause(
        name="gave-up",
        what="it was started again and again without getting anywhere",
        advice="playbooks/logs.yml shows what each start said",
        # failures/__main__.py; training/lifecycle.py; training/script.py
        patterns=(r"\bgave up$|and came no further than step|and no start lasted",),
        follows=True,
        vague=True,
    ),
)


def cause_of(lines: Iterable[str]) -> Cause | None:
    """The first row of the table that fits any of the lines."""
    text = "\n".join(lines)
    return next((cause for cause in TABLE if cause.fits(text)), None)
