"""What each machine of the run does: from figures of every rank to one row per machine, by its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch.nn.parallel import DistributedDataParallel

from training.distributed import Place, table_of_ranks
from training.reports.communication import Communication
from training.reports.gpu import DeviceProbe, mean

# The figures of a rank, and how those of several ranks on one machine become one.
OVER_RANKS: Mapping[str, Callable[[list[float]], float]] = {
    "seconds": max,
    "communication_share": mean,
    "gpu_utilisation": mean,
    "gpu_memory_gb": sum,
    "gpu_power_w": sum,
    "gpu_temperature_c": max,
    "cpu_utilisation": mean,
}


class NodeProbe:
    """The figures of all machines, of which every rank contributes its own (see gpu.py and communication.py)."""

    def __init__(self, place: Place, ddp: DistributedDataParallel):
        self._place = place
        self._device, self._communication = DeviceProbe(place.device), Communication(ddp)

    def of_all_nodes(self, seconds: float) -> dict[str, dict[str, float]]:
        """Figures of OVER_RANKS since the last call, as far as known, by node name; collective.

        `seconds` is this rank's mean duration of a step since then.
        """
        figures = {"seconds": seconds, "communication_share": self._communication.share(seconds), **self._device.read()}
        known = [figures.get(name) for name in OVER_RANKS]
        row = torch.tensor([math.nan if value is None else value for value in known], dtype=torch.float64)
        return by_node(self._place.nodes, table_of_ranks(self._place, row).tolist())

    def close(self) -> None:
        self._device.close()


def by_node(nodes: Iterable[str], rows: Iterable[list[float]]) -> dict[str, dict[str, float]]:
    """One row of figures per machine; `rows[r]` is rank r's in the order of OVER_RANKS, NaN what is not known, and
    `nodes[r]` the machine it runs on.
    """
    gathered: dict[str, dict[str, list[float]]] = {}
    for node, row in zip(nodes, rows, strict=True):
        of_node = gathered.setdefault(node, {})
        for name, value in zip(OVER_RANKS, row, strict=True):
            if not math.isnan(value):
                of_node.setdefault(name, []).append(value)
    return {
        node: {name: OVER_RANKS[name](values) for name, values in of_node.items()} for node, of_node in gathered.items()
    }
