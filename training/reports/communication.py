"""Which share of a step a rank waits for the exchange of gradients."""

from __future__ import annotations

from torch.nn.parallel import DistributedDataParallel

ALWAYS_TIMED = 10  # DDP times its first backward passes whatever the rate


class Communication:
    """The communication share of one rank: the part of its step in which its own backward pass is over and it waits
    for the rest of the gradient exchange, be it for the network or for a slower rank.

    The clocks are DDP's own: exchange that runs beside the backward pass does not count, and nothing is put between
    DDP and its all-reduce, so the results keep their bits. On GPUs they are CUDA events, and reading them makes the
    host wait for the GPU; therefore one step in ten is timed there. Make this before DDP's eleventh backward pass.
    """

    def __init__(self, ddp: DistributedDataParallel, *, every: int = 0):
        """Time every `every`-th step; 0: each on a CPU, one in ten on a GPU."""
        on_gpu = next(ddp.parameters()).device.type == "cuda"
        self._ddp, self._every = ddp, every or (10 if on_gpu else 1)
        self._timed, self._waited, self._mean = 0, 0.0, None
        ddp._set_ddp_runtime_logging_sample_rate(self._every)

    def share(self, seconds: float) -> float | None:
        """The share (0 to 1) of a step of `seconds`, mean over the steps timed since the last call.

        The last one known if none was; None before the first. DDP books a step when the next one begins, so the
        newest step counts in the next call.
        """
        data = self._ddp._get_ddp_logging_data()
        steps, exchange, hidden = (data.get(key) for key in ("iteration", *_MEANS))
        timed = min(steps, ALWAYS_TIMED) + max(0, steps // self._every - ALWAYS_TIMED // self._every)
        if exchange is not None and hidden is not None and timed > self._timed:
            waited = (exchange - hidden) * timed / 1e9
            self._mean = (waited - self._waited) / (timed - self._timed)
            self._timed, self._waited = timed, waited
        return None if self._mean is None else self._mean / seconds


# Nanoseconds, means over all steps that were timed.
_MEANS = ("avg_backward_comm_time", "avg_backward_compute_comm_overlap_time")
