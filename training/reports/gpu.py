"""How busy the device of this process is: a GPU by the driver's own counters, a CPU by this process's threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import torch


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# How the samples since the last reading become one figure. Memory is the peak, since that is what runs out.
OVER_SAMPLES: Mapping[str, Callable[[list[float]], float]] = {
    "gpu_utilisation": mean,
    "gpu_memory_gb": max,
    "gpu_power_w": mean,
    "gpu_temperature_c": max,
}


class DeviceProbe:
    """What `device` did since the last reading.

    A GPU is sampled each `every` seconds in a thread, so that the training loop never waits for the driver (NVML):
    gpu_utilisation (0 to 1), gpu_memory_gb (of the whole card, other processes included), gpu_power_w and
    gpu_temperature_c. What the card or the driver does not tell is left out; without a driver that is all of them.
    A CPU has cpu_utilisation: CPU time of this process as a share (0 to 1) of the time of its torch threads.
    No error of these leaves this class.
    """

    def __init__(self, device: torch.device, *, every: float = 1.0):
        self._every = every
        self._is_cpu = device.type == "cpu"
        self._samples: list[dict[str, float]] = []
        self._known: dict[str, float] = {}
        self._closed = threading.Event()
        self._busy, self._since = time.process_time(), time.perf_counter()
        handle = None if self._is_cpu else _nvml_handle(device)
        if handle is not None:
            threading.Thread(target=self._watch, args=(handle,), name="device-probe", daemon=True).start()

    def read(self) -> dict[str, float]:
        """The figures since the last call; on a GPU the same as then if there was no new sample."""
        if self._is_cpu:
            return {"cpu_utilisation": self._cpu_share()}
        samples, self._samples = self._samples, []
        for name, over in OVER_SAMPLES.items():
            if values := [sample[name] for sample in samples if name in sample]:
                self._known[name] = over(values)
        return dict(self._known)

    def close(self) -> None:
        """End the sampling."""
        self._closed.set()

    def _cpu_share(self) -> float:
        busy, now = time.process_time(), time.perf_counter()
        share = (busy - self._busy) / max(now - self._since, 1e-9) / torch.get_num_threads()
        self._busy, self._since = busy, now
        return share

    def _watch(self, handle: object) -> None:
        while True:
            self._samples.append(_sample(handle))
            if self._closed.wait(self._every):
                return


def _nvml_handle(device: torch.device) -> object | None:
    """NVML's handle of a CUDA device; None where the driver does not give one.

    By UUID, because NVML counts all cards of the machine and torch only those in CUDA_VISIBLE_DEVICES.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Exception:  # no package, no driver, part of a card: training needs none of this
        return None


def _sample(handle: object) -> dict[str, float]:
    """The figures that the card gives now; laptop and virtual cards refuse some, a lost card all."""
    import pynvml

    questions = {
        "gpu_utilisation": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        "gpu_memory_gb": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used / 1e9,
        "gpu_power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "gpu_temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
    }
    figures = {}
    for name, ask in questions.items():
        try:
            figures[name] = float(ask())
        except pynvml.NVMLError:
            continue
    return figures
