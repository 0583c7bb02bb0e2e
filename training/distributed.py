"""Where this process runs and with whom: device, backend, process group, and the small sums that ranks
share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training import cards, connections, meeting, parity
from training.config import Config
from training.errors import UserError

# What gloo and the sockets below it say when the other side is gone; no exception type of its own tells it.
PEER_LOST = (
    "gloo/transport",
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "connection refused",
    "timed out waiting",
    "wait timeout",
    "socket timeout",
    "socket closed",
)
# What NCCL says in the same kind of error of this rank's own mistakes, which a restart does not mend.
OWN_MISTAKE = ("invalid usage", "invalid argument", "duplicate gpu", "out of memory")
CARD_FAULT = ("uncorrectable ecc error", "gpu is lost", "fallen off the bus", "cuda error: unknown error")
DIFFERENT_SHOWN = 8  # nodes that a report of differences names
MEETING = 300
"""Seconds that the first process at the meeting waits for the last. The launcher starts all at once, so this is what
loading Python's packages may take longer on one machine than on another."""


class SetupError(UserError):
    """The ranks do not fit together, or a device that the config asks for is not there; one line with the
    fix.
    """


class CardLostError(RuntimeError):
    """This machine has fewer GPUs than it had: the others go on without it."""


@dataclasses.dataclass(kw_only=True, frozen=True)
class Place:
    """This process among its peers; `nodes[r]` is the name of the machine that rank r runs on.

    `control` is the group for small numbers between the processes themselves (gloo, on the CPU): exchanging them
    does not wait for what a GPU has still to do.
    """

    rank: int
    world_size: int
    device: torch.device
    backend: str
    nodes: tuple[str, ...]
    control: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        """Rank 0 writes the shared files; which machine it runs on changes from start to start."""
        return self.rank == 0

    @property
    def node(self) -> str:
        return self.nodes[self.rank]


def node_name() -> str:
    """The inventory's name of this machine where the launcher gives it, else the host name."""
    return os.environ.get("MINOS_NODE") or socket.gethostname()


def choose_device(given: str) -> tuple[torch.device, str]:
    """(device, backend) for this process; LOCAL_RANK picks among this machine's devices and decides nothing
    else.

    Errors: SetupError when nccl is asked for without CUDA, or the machine has fewer GPUs than processes; CardLostError
    when it has fewer than the job was started with, which shall not go on on a CPU without a word.
    """
    backend = given if given != "auto" else "nccl" if torch.cuda.is_available() else "gloo"
    gpus = cards.of_torch()
    if given != "gloo" and (lost := cards.missing(node_name(), "torch", gpus)):
        raise CardLostError(lost)
    if backend == "gloo":
        return torch.device("cpu"), backend
    if not torch.cuda.is_available():
        raise SetupError(f"backend: nccl needs CUDA and torch sees none on {node_name()}; write backend=gloo or auto")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= gpus:
        raise SetupError(
            f"{node_name()} has {gpus} GPUs and more processes; start at most {gpus} there (nproc_per_node)"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device, backend


def start(config: Config) -> Place:
    """Join the process group and say where this process runs. Without torchrun this is a group of one.

    The ranks first lay what they run with into the launcher's key-value store and compare it: two backends or versions
    of a package would otherwise show as a hang or as wrong weights. To be called before anything that takes long: from
    here on machines that are lost are noticed.
    Errors: SetupError; torch's own DistError when a peer does not come within MEETING or `timeout_start`.
    """
    device, backend = choose_device(config.backend)
    meeting.attend()  # until the first step; errors end it (lifecycle.py)
    timeout = datetime.timedelta(seconds=config.timeout_start)
    patience = min(timeout, datetime.timedelta(seconds=MEETING))
    store, rank, world_size = _meet(patience)
    nodes = _require_agreement(store, rank, world_size, _facts(config, backend))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=patience)
    control = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo", timeout=patience)
    connections.watch(max(connections.SILENT, config.timeout_step))  # NCCL makes its own with the first collective
    place = Place(
        rank=rank,
        world_size=world_size,
        device=device,
        backend=backend,
        nodes=nodes,
        control=control,
    )
    store.set_timeout(timeout)
    _set_timeout(place, config.timeout_start)
    where = f"node={place.node} device={device} backend={backend} world_size={world_size}"
    # One write for text and line end: all ranks say this at once, into one log.
    print(f"rank {rank}/{world_size} {where} pid={os.getpid()}\n", end="", flush=True)
    return place


def _meet(patience: datetime.timedelta) -> tuple[dist.Store, int, int]:
    """(store between the processes, rank, world size)."""
    if "RANK" in os.environ:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=patience))
        if os.environ.get("LOCAL_WORLD_SIZE") == str(world_size):
            # torchrun on one machine keeps one store over all its restarts: workers of the second attempt would
            # read addresses of the first and wait for ever. (On several, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
            # gives each attempt a store of its own; the restart count differs between machines there.)
            store = dist.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and _restarts_allowed():
            raise SetupError(
                "torchrun on several machines shares one store between restarts, and a restarted run would never come "
                "back: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on all of them, or --max-restarts=0"
            )
    else:
        store, rank, world_size = dist.HashStore(), 0, 1
    store.set_timeout(patience)
    return store, rank, world_size


def _restarts_allowed() -> bool:
    return os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def _facts(config: Config, backend: str) -> dict[str, str]:
    facts = {"backend": backend} | {f"config {key}": str(value) for key, value in dataclasses.asdict(config).items()}
    facts |= parity.describe(code=Path(__file__).parent)
    if backend != "nccl" or os.environ.get("MINOS_ANY_DRIVER"):
        facts.pop("driver", None)  # a machine without a GPU may take part then, or its owner wants it so
    return facts


def _require_agreement(store: dist.Store, rank: int, world_size: int, facts: Mapping[str, str]) -> tuple[str, ...]:
    """The node of each rank. All read a digest of each; the facts themselves are fetched where the digests differ."""
    store.set(f"facts-{rank}", json.dumps(facts))
    driver = facts.get("driver", "")
    digest = parity.short(json.dumps({**facts, "driver": ""}, sort_keys=True).encode())
    store.set(f"rank-{rank}", json.dumps({"node": node_name(), "digest": digest, "driver": driver}))
    everyone = [json.loads(store.get(f"rank-{other}")) for other in range(world_size)]
    nodes = tuple(other["node"] for other in everyone)
    # A machine without a driver has none that could differ: it is compared as if it had the first one's.
    drivers = [other.get("driver", "") for other in everyone]  # a node with other code may say less
    first = next((other for other, driver in enumerate(drivers) if driver), 0)
    said = [(other["digest"], own or drivers[first]) for other, own in zip(everyone, drivers, strict=True)]

    def facts_of(other: int) -> dict:
        borrowed = {"driver": f"{drivers[first]} on {nodes[first]}"} if other == 0 and drivers[first] else {}
        return borrowed | json.loads(store.get(f"facts-{other}"))

    _refuse_differences(nodes, said, facts_of)
    return nodes


def require_same(place: Place, facts: Mapping[str, str]) -> None:
    """That all ranks say the same of what else they run with, such as their data. Errors: SetupError, who does not."""
    everyone: list = [None] * place.world_size
    dist.all_gather_object(everyone, dict(facts), group=place.control)
    _refuse_differences(place.nodes, everyone, everyone.__getitem__)


def _refuse_differences(nodes: Sequence[str], said: Sequence[object], facts_of: Callable[[int], dict]) -> None:
    """`said` stands for the facts of each rank, which `facts_of` fetches."""
    different: dict[str, int] = {}  # the first rank of each node that has one
    for other, node in enumerate(nodes):
        if said[other] != said[0]:
            different.setdefault(node, other)
    if different:
        chosen = [0, *list(different.values())[:DIFFERENT_SHOWN]]
        facts = {f"{nodes[other]} (rank {other})": facts_of(other) for other in chosen}
        sentence, table = parity.compare(facts)
        fix = "make them equal (site.yml does it for packages, train.yml for code and config)"
        if len({each.get("backend") for each in facts.values()}) > 1:  # nothing that anybody could install mends that
            fix = "where it is gloo torch sees no GPU: leave those out (-e group=), or write backend=gloo for all"
        raise SetupError(f"{sentence}; {fix}", table)


def data_parallel(module: nn.Module, config: Config) -> DistributedDataParallel:
    """`module` whose gradients are averaged over the ranks; its weights become rank 0's, except the frozen ones.

    Those were read from the same files everywhere; DDP would send them all to everybody at each start.
    """
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, frozen)
    return DistributedDataParallel(
        module, forward_sync_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=config.bucket_mb
    )


def sum_over_ranks(place: Place, values: torch.Tensor) -> list[float]:
    """Element-wise sum of every rank's `values` (float64 or int64, on the CPU), equal on all ranks."""
    dist.all_reduce(values, group=place.control)
    return values.tolist()


def table_of_ranks(place: Place, values: torch.Tensor) -> torch.Tensor:
    """Every rank's `values` (float64, on the CPU, the same shape everywhere) as (world size, *shape)."""
    table = values.new_empty((place.world_size, *values.shape))
    dist.all_gather(list(table.unbind()), values, group=place.control)
    return table


def agree(place: Place, value: float) -> float:
    """Rank 0's `value` on every rank; also a point that no rank passes before all have reached it."""
    return sum_over_ranks(place, torch.tensor([value if place.is_main else 0.0], dtype=torch.float64))[0]


class Patience:
    """How long collectives wait for a peer: `timeout_start` until the first step is done, then five times the
    slowest thing seen so far, so that a node that lost power is noticed in a minute and not in half an hour.
    """

    def __init__(self, place: Place, config: Config):
        self.place, self.start, self.fixed = place, config.timeout_start, config.timeout_step
        # torch.compile may compile again in the middle of a run, when a last batch has another size.
        self.lowest = 300 if config.compile else 60
        self.seconds: float | None = None

    def saw(self, seconds: float) -> None:
        """Something that the ranks wait for each other in took so long."""
        meeting.unattended()
        wanted = self.fixed or max(self.lowest, math.ceil(5 * seconds))
        if self.seconds is None or wanted > self.seconds:
            self.seconds = wanted
            _set_timeout(self.place, wanted)

    def start_over(self, times: float = 1) -> None:
        """What comes next may take as long as a start, or `times` as long."""
        _set_timeout(self.place, times * max(self.start, self.seconds or 0))

    @contextlib.contextmanager
    def unhurried(self) -> Iterator[None]:
        """Within, the ranks wait for each other as long as at the start."""
        self.start_over()
        yield
        if self.seconds is not None:
            _set_timeout(self.place, self.seconds)


def _set_timeout(place: Place, seconds: float) -> None:
    # torch has no public name for this; torchtitan calls it too.
    for group in {dist.group.WORLD, place.control}:
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds), group)


def end() -> None:
    """Leave the process group if there is one."""
    meeting.unattended()
    if dist.is_initialized():
        dist.destroy_process_group()


def is_peer_failure(error: BaseException) -> bool:
    """Whether `error` only says that another rank is gone or late: a restart helps, and the job has not
    failed.
    """
    said = str(error).lower()
    if isinstance(error, dist.DistError):  # DistBackendError, DistNetworkError, DistStoreError
        return not any(words in said for words in OWN_MISTAKE)
    return isinstance(error, RuntimeError) and any(words in said for words in PEER_LOST)


def is_card_failure(error: BaseException) -> bool:
    """Whether the GPU has reported a fault that no program can cause: another start may find it well, or this machine
    without it.
    """
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in CARD_FAULT)
